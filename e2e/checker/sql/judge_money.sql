-- An order's total is the sum of its lines; preloaded and live ones alike.
select 'money_conserved' as rule, count(*) as violations,
       (array_agg(format('order %s costs %s, its lines %s', order_id, total_cents, coalesce(sum_cents, 0))))[1:5] as examples
from orders
left join (
    select user_id, order_id, sum(quantity * price_cents) as sum_cents from order_items group by user_id, order_id
) as lines using (user_id, order_id)
where pg_temp.mine(user_id) and total_cents <> coalesce(sum_cents, 0)
having count(*) > 0

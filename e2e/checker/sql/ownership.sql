-- One row per run of consecutive buckets with the same state and epoch, in order of buckets.
select first, coalesce(lead(before) over (order by first), (select max(bucket) from longshore.ownership)) as last,
       state, epoch
from (
    select bucket as first, state::text as state, epoch, lag(bucket) over w as before,
           lag(state) over w is distinct from state or lag(epoch) over w is distinct from epoch
           or lag(bucket) over w is distinct from bucket - 1 as starts
    from longshore.ownership
    window w as (order by bucket)
) as bucket
where starts
order by first

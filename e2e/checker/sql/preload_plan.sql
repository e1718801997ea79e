-- The orders of the buckets that this shard owns, in order of buckets, so that one transaction touches few.
create temporary table preload_plan as
select i, pg_temp.preload_user(i) as user_id, pg_temp.preload_id(i) as order_id,
       ((row_number() over (order by owned.bucket, i) - 1) / {batch})::integer as batch
from generate_series(0, {orders}::bigint - 1) as i
join (select bucket from longshore.ownership where state::text = 'owned') as owned
    on owned.bucket = pg_temp.bucket(pg_temp.preload_user(i));
create index on preload_plan (batch);
analyze preload_plan;

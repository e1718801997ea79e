-- Which numbers are here, in blocks, so that a million of them are a hundred rows.
select i >> 13 as block, array_agg((i & 8191)::integer) as members from preload_found group by 1

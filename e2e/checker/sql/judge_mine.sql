-- Whether a user's rows count where they lie: the bucket is owned by this shard (or by nobody, and was here).
create or replace function pg_temp.mine(user_id bigint) returns boolean stable language sql as
$$ select '{ranges}'::int4multirange @> pg_temp.bucket(user_id) $$;

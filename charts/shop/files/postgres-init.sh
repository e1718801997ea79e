#!/bin/sh
# Makes a server's data folder with its database, roles and passwords, once. Killed half-way, it starts over: the folder gets
# its name when it is complete.
set -eu
umask 077
volume=/var/lib/postgresql
data=$volume/data
if [ -d "$data" ]; then
  chmod 0700 "$data" # a kubelet that changes a volume's group opens it too far for PostgreSQL
  exit 0
fi
new=$volume/data.new
passwords=/etc/longshore/passwords
rm -rf "$new" /run/postgresql/.s.PGSQL.*
# Only this pod reaches the socket; whoever comes over the network is asked as pg_hba.conf of the chart says.
initdb -D "$new" --username postgres --pwfile "$passwords/postgres" --auth-local trust --auth-host scram-sha-256 \
  --encoding UTF8 --locale C --data-checksums --no-instructions
# An error must not log the statement that it is about: it holds a password.
pg_ctl -D "$new" -w -t 300 -l /tmp/init.log start \
  -o "-c listen_addresses='' -c unix_socket_directories=/run/postgresql -c log_min_error_statement=panic" ||
  { cat /tmp/init.log >&2; exit 1; }
sql() { psql -X -q -h /run/postgresql -U postgres -v ON_ERROR_STOP=1 -v VERBOSITY=terse "$@"; }
sql -d postgres -v database="$DATABASE" <<'SQL'
create database :"database";
SQL
sql -d "$DATABASE" -f /etc/longshore/postgres/roles.sql
# psql reads the passwords itself, so that no command line has them.
for role in longshore_operator longshore_replication longshore_service; do
  sql -d postgres -v role="$role" -v file="$passwords/$role" <<'SQL'
\set password `cat :'file'`
alter role :"role" password :'password';
SQL
done
pg_ctl -D "$new" -w -t 300 -m fast stop
mv "$new" "$data"
sync "$volume"

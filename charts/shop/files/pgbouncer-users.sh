#!/bin/sh
# Writes PgBouncer's list of users from the mounted Secret.
set -eu
umask 077
credentials=/etc/longshore/credentials
list=/run/pgbouncer/users.txt

# In double quotes, as PgBouncer reads it: a quote in it is doubled.
quoted() {
  rest=$1 out=
  while :; do
    case $rest in
      *\"*) out=$out${rest%%\"*}\"\" rest=${rest#*\"} ;;
      *) break ;;
    esac
  done
  printf '"%s"' "$out$rest"
}

{
  quoted "$(cat "$credentials/username")"
  printf ' '
  quoted "$(cat "$credentials/password")"
  echo
} >"$list.new"
mv "$list.new" "$list"

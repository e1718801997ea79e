#!/bin/sh
# Runs a server, and lets it read its files again whenever what is mounted has changed: certificates, passwords.
#   serve.sh PROGRAM [ARGUMENT…]
# WATCHED holds folders of mounted Secrets; PREPARE, if set, is run before the start and before each reload.
set -eu
# A kubelet swaps this link to change all files of a folder at once.
mounted() { for folder in $WATCHED; do readlink "$folder/..data"; done; }

seen=$(mounted)
${PREPARE:-:}
"$@" &
server=$!
# SIGTERM would wait for clients, who keep their connections; SIGINT lets transactions end (PgBouncer) or ends them (PostgreSQL).
trap 'kill -INT "$server"' TERM INT

while sleep 5; do
  now=$(mounted) || continue
  [ "$now" != "$seen" ] || continue
  ${PREPARE:-:} && kill -HUP "$server" && seen=$now && echo "mounted files have changed: reloaded" >&2 || continue
done &

# A trapped signal ends `wait`, not the server.
while :; do
  status=0
  wait "$server" || status=$?
  kill -0 "$server" 2>/dev/null || exit "$status"
done

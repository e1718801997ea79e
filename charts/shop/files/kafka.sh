#!/bin/sh
# Runs a broker that is a controller as well. Its number is that of its pod; its storage is formatted once.
set -eu
umask 077
number=${HOSTNAME##*-}
data=/var/lib/kafka/data
store=/run/kafka
properties=$store/server.properties

# Kafka takes a certificate and its key from one file.
cat /etc/longshore/tls/tls.key /etc/longshore/tls/tls.crt > "$store/server.pem"
{
  cat /etc/longshore/kafka/server.properties
  echo "node.id=$number"
  echo "log.dirs=$data"
  echo "advertised.listeners=INTERNAL://$HOSTNAME.$DOMAIN:9091,CLIENT://$HOSTNAME.$DOMAIN:9093"
  rack=$(echo "$RACKS" | cut -d ' ' -f "$((number + 1))")
  [ -z "$rack" ] || echo "broker.rack=$rack"
} > "$properties"

java() { # heap, then what java takes
  heap=$1
  shift
  exec /usr/lib/jvm/java-21-openjdk-amd64/bin/java "-Xmx$heap" -XX:+ExitOnOutOfMemoryError -Djava.io.tmpdir=/tmp \
    -Dorg.slf4j.simpleLogger.showDateTime=true "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX" \
    -Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn -cp '/opt/kafka/*' "$@"
}

# Killed half-way, it starts over: this file is the last that is written.
if [ ! -e "$data/meta.properties" ]; then
  users=/etc/longshore/kafka-operator
  (java 64m kafka.tools.StorageTool format --cluster-id "$CLUSTER_ID" --config "$properties" \
    --add-scram "SCRAM-SHA-512=[name=$(cat $users/username),password=$(cat $users/password)]")
fi
java "$HEAP" kafka.Kafka "$properties"

# Kafka's jars on a base with Java.
ARG BASE
FROM ${BASE}
ADD kafka.tar /opt/
USER 65532:65532

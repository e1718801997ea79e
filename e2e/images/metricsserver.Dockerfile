FROM scratch
COPY metricsserver /metricsserver
USER 65532:65532
ENTRYPOINT ["/metricsserver"]

# Debian packages unpacked into an image of their own.
FROM scratch
ADD rootfs.tar /
ENV PATH=/usr/lib/postgresql/17/bin:/usr/local/bin:/usr/bin:/usr/sbin
USER 65532:65532

# Stands in for the official `rust:…-slim-bookworm` where no registry can be reached: Debian's compiler
# and the toolchain of the machine, which is the build context together with the certificates it trusts.
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
COPY context/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY context/toolchain /usr/local
ENV CARGO_HOME=/usr/local/cargo

# The images of both services: `docker build --target agreement-svc .` and `--target order-svc`.
# The classic builder and BuildKit both build it.

# Raised together with the toolchain that the checks run with; `rust-version` in Cargo.toml is the least.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libpq-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY proto proto
COPY chassis chassis
COPY agreement-svc agreement-svc
COPY order-svc order-svc
# Not built, but Cargo wants to see every member of the workspace.
COPY tests/Cargo.toml tests/
COPY tests/src/lib.rs tests/src/
# Without the bundled libpq, the system's is linked, which speaks TLS to PostgreSQL.
ARG PROFILE=release
RUN cargo build --profile $PROFILE --locked --no-default-features --package agreement-svc --package order-svc \
 && cp target/*/agreement-svc target/*/order-svc /usr/local/bin/

FROM debian:bookworm-slim AS runtime
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates libpq5 \
 && rm -rf /var/lib/apt/lists/*
LABEL org.opencontainers.image.licenses="MIT"
# Numeric, so that an orchestrator can see that it is not root. It owns no file of the image.
USER 10001:10001

FROM runtime AS agreement-svc
LABEL org.opencontainers.image.title="agreement-svc" \
      org.opencontainers.image.description="Owns attestations and direct-sign status, and answers the gate."
COPY --from=build /usr/local/bin/agreement-svc /usr/local/bin/
EXPOSE 50051 9464
ENTRYPOINT ["agreement-svc"]
CMD ["serve"]

# Makes the secrets of a development stack; see deploy/secrets/make.
FROM agreement-svc AS secrets
USER 0
RUN apt-get update \
 && apt-get install --yes --no-install-recommends openssl \
 && rm -rf /var/lib/apt/lists/*
COPY deploy/secrets/make /usr/local/bin/make-secrets
ENTRYPOINT ["make-secrets"]
CMD []

FROM runtime AS order-svc
LABEL org.opencontainers.image.title="order-svc" \
      org.opencontainers.image.description="Accepts purchases and seat changes once the gate allows them."
COPY --from=build /usr/local/bin/order-svc /usr/local/bin/
EXPOSE 50052 9464
ENTRYPOINT ["order-svc"]
CMD ["serve"]

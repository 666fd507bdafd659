# Stands in for `axllent/mailpit` where no registry can be reached.
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/*
COPY mailpit /mailpit
EXPOSE 1025 8025
HEALTHCHECK --interval=15s CMD ["/mailpit", "readyz"]
ENTRYPOINT ["/mailpit"]

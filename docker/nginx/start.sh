#!/bin/sh
# Fill the limits of .env into nginx.conf, since nginx reads no environment variables, and start nginx.
set -eu
sed -e "s|@RATE@|$GATEWAY_RATE|g" -e "s|@BURST@|$GATEWAY_BURST|g" -e "s|@MAX_BODY@|$GATEWAY_MAX_BODY|g" \
    -e "s|@MAX_BATCH_BODY@|$GATEWAY_MAX_BATCH_BODY|g" -e "s|@READ_TIMEOUT@|$GATEWAY_READ_TIMEOUT|g" \
    -e "s|@CONNECTIONS@|$GATEWAY_CONNECTIONS|g" -e "s|@BATCHES@|$GATEWAY_BATCHES|g" \
    "$(dirname "$0")/nginx.conf" >/tmp/nginx.conf
exec nginx -c /tmp/nginx.conf "$@"

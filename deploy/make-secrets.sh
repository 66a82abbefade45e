#!/bin/sh
# Make the secrets of compose.yaml that are missing. To rotate one: delete its file, run this again.
set -eu
cd "$(dirname "$0")"
# The folder keeps other users of the host out; the files are readable, because each container reads
# them as another user.
umask 077
mkdir -p secrets
umask 022
for name in MQTT_PASSWORD MQTT_OPERATOR_PASSWORD MQTT_VIEWER_PASSWORD STREAMEXIT_HTTP_TOKEN GRAFANA_ADMIN_PASSWORD; do
  test -s "secrets/$name" || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name"
done

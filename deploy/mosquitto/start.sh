# Broker's entry in compose.yaml: the password file is made of the secrets at each start, in memory, so
# that rotating a secret takes a restart and no tool.
set -eu
umask 077
cd "${RUN:-/run/mosquitto}"
secrets=${SECRETS:-/run/secrets}
{
  printf 'node:%s\n' "$(cat "$secrets/MQTT_PASSWORD")"
  printf 'operator:%s\n' "$(cat "$secrets/MQTT_OPERATOR_PASSWORD")"
  printf 'viewer:%s\n' "$(cat "$secrets/MQTT_VIEWER_PASSWORD")"
} > passwords
mosquitto_passwd -U passwords   # plain text becomes salted hashes; nothing stood on a command line
cp "${CONFIG:-/mosquitto/config}/acl" acl   # mosquitto wants it unreadable for others, like the passwords
# Options of mosquitto_sub, for the health check.
printf -- '-u viewer\n-P %s\n' "$(cat "$secrets/MQTT_VIEWER_PASSWORD")" > mosquitto_sub
exec mosquitto -c "${CONFIG:-/mosquitto/config}/mosquitto.conf"

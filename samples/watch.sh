#!/bin/sh
# One line per result. Options are those of mosquitto_sub:
#   sh samples/watch.sh -h broker.example -u viewer -P "$PASSWORD"
# PREFIX is `node.prefix` of the configuration. Needs mosquitto_sub and jq.
mosquitto_sub -q 1 -t "${PREFIX:-streamexit}/+/stream/+/result" "$@" |
  jq --raw-input --raw-output --unbuffered '
    def percent: "\(. * 100 | round)%";
    fromjson? | select(.schema == "streamexit.result/1")
    | [ .captured_at,
        "\(.node)/\(.stream)",
        (.answer
         | if .task == "segmentation"
           then [.shares[:3][] | "\(.label) \(.share | percent)"] | join(", ")
           else "\(.label) \(.probability | percent)" end),
        "exit \(.exit)/\(.exits)",
        "\(.cost.value * 10000 | round / 10000) \(.cost.unit)",
        "\(.latency_ms | round) ms",
        (if .dropped_since_last > 0 then "\(.dropped_since_last) dropped before" else empty end),
        (if .historical then "sent late" else empty end)
      ] | join("  ")'

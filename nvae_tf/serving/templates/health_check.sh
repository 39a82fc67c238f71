#!/bin/bash
# Ends with 0 if every model that is named has a version that answers requests:  health_check.sh digits faces
# It needs bash alone: the official image has neither curl nor Python. SERVING_REST_PORT is the port of the REST
# interface, 8501 if it is not set.
for name in "$@"; do
  exec 3<>"/dev/tcp/127.0.0.1/${SERVING_REST_PORT:-8501}" || exit 1
  printf 'GET /v1/models/%s HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$name" >&3
  # Everything up to the end of the answer; what has come after 5 s if the connection is kept open.
  IFS= read -r -d '' -t 5 -u 3 answer
  exec 3<&- 3>&-
  if [[ $answer != HTTP/1.?" 200 "* || $answer != *'"AVAILABLE"'* ]]; then
    echo "$name: ${answer:-no answer}"
    exit 1
  fi
done

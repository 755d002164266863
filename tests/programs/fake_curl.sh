#!/bin/bash
# Stands in for curl on a host (tests/support/fake_host.py): the metadata server, and a log of all other requests, each
# with the header that came by standard input.
for last; do :; done
case $last in
  */agent-worker-number) echo "$FAKE_WORKER" ;;
  */worker-network-endpoints) echo "$FAKE_ENDPOINTS" ;;
  */token) echo '{"access_token":"the-token","expires_in":3599,"token_type":"Bearer"}' ;;
  *) echo "$@" "$(cat)" >>"$FAKE_HOST/requests" ;;
esac

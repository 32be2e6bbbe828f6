#!/bin/sh
# Records examples/slow.py under load, and opens the recording in Perfetto's interface: perfetto.sh PYTHON PICTURE.
set -eu
python=$1
picture=$2
folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
touch "$folder/url"
"$python" -m hotloop --watch=0.02 --record=1 --record-to="$folder" examples/slow.py --port 0 >"$folder/url" 2>"$folder/errors" &
service=$!
until grep -q http "$folder/url"; do sleep 0.1; done
"$python" examples/slow.py --load --port "$(sed 's/.*://' "$folder/url")" --seconds 3
kill -TERM $service
wait $service
"$python" tests/systems/perfetto.py "$folder"/hotloop-*-end.json "$picture"
echo "no import error: $picture"

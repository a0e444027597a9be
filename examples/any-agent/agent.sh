#!/bin/sh
# One run of an agent that knows nothing of Runlore but HTTP: it begins with the memory and the workspace of the run
# before it, and leaves both for the next.
#
#     ./agent.sh CONVERSATION TASK COMMAND
#
# The "agent" is a shell: it does COMMAND in its workspace. What a run did goes in as any chat would: what the user
# asked, the tool's call, what it printed. Needs curl (7.76 or newer) and tar. Where the service is: RUNLORE_URL,
# RUNLORE_KEY.
set -eu

[ $# -eq 3 ] || { echo "usage: $0 CONVERSATION TASK COMMAND" >&2; exit 2; }
conversation=$1 task=$2 command=$3
url=${RUNLORE_URL:-http://127.0.0.1:7077}
project=${PROJECT:-acme} memory=${MEMORY:-support}
base_url="${url%/}/v1/projects/$project"
run="run-$(date +%s)-$(od -An -N6 -tx1 /dev/urandom | tr -d ' \n')"
folder=$(mktemp -d)
kept=""
trap '[ -n "$kept" ] || rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$folder/workspace"
# In a file: what stands in a command line is shown to everybody on this machine.
[ -z "${RUNLORE_KEY:-}" ] || printf 'Authorization: Bearer %s\n' "$RUNLORE_KEY" >"$folder/key"

# Ask the service, and put its answer into the file that is named first. Its errors are JSON with a `kind`, shown as
# they are. What may pass (503, a closed port) is tried again.
ask() {
  answer=$1
  shift
  if [ -f "$folder/key" ]; then set -- -H "@$folder/key" "$@"; fi
  curl --silent --show-error --fail-with-body --globoff --connect-timeout 10 --max-time 900 \
    --retry "${RETRIES:-3}" --retry-connrefused --output "$answer" "$@" && return
  if [ -s "$answer" ]; then cat "$answer" >&2; echo >&2; fi
  return 1
}

# A string, or the object `base`, out of a JSON answer. In a language with a JSON parser: use that.
text_of() { tr -d '\n' | sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p'; }
base_of() { tr -d '\n' | sed -n 's/.*"base": *\({[^}]*}\).*/\1/p'; }

# Any bytes as a JSON string. What is no UTF-8 is left out; where there is no iconv, all that is not ASCII.
utf8() { iconv -c -f UTF-8 -t UTF-8 2>"$folder/iconv" || LC_ALL=C tr -d '\200-\377'; }
json() {
  tab=$(printf '\t')
  printf '"%s"' "$(LC_ALL=C tr -d '\000-\010\013-\037\177' | utf8 |
    sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e "s/$tab/\\\\t/g" |
    awk 'NR > 1 { printf "\\n" } { printf "%s", $0 }')"
}

# 1. The seed: which memory and which workspace this run begins with. `AFTER_RUN` is a run that it must hold.
set -- --get "$base_url/memories/$memory/seed" --data-urlencode "conversation_id=$conversation"
if [ -n "${AFTER_RUN:-}" ]; then
  tries=300
  until ask "$folder/after.json" "$base_url/runs/$AFTER_RUN" 2>"$folder/why" &&
    grep -q '"stage": *"snapshot"' "$folder/after.json"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { echo "the workspace of $AFTER_RUN is not there yet" >&2; cat "$folder/why" >&2; exit 1; }
    sleep 0.1
  done
  set -- "$@" --data-urlencode "wait_for=$AFTER_RUN" --data-urlencode "wait_seconds=60"
fi
ask "$folder/seed.json" "$@"
seed=$(text_of seed <"$folder/seed.json")
base=$(base_of <"$folder/seed.json")

# 2. The workspace, with the memory in memories/: one tar. Without a seed the run begins with nothing.
if [ -n "$seed" ]; then
  ask "$folder/workspace.tar" "$base_url/seeds/$seed/workspace.tar"
  tar -xof "$folder/workspace.tar" -C "$folder/workspace"
fi

# 3. The work. An agent would now read memories/memory_summary.md into its prompt.
status=0
(cd "$folder/workspace" && sh -c "$command") >"$folder/output" 2>&1 </dev/null || status=$?
cat "$folder/output"

# What it left: from here on the run is over, and is not lost because the service is away.
kept=yes
trap 'if [ -n "$kept" ]; then rm -f "$folder/key"; echo "not delivered, kept in $folder" >&2; else rm -rf "$folder"; fi' EXIT
tar -cf "$folder/left.tar" -C "$folder/workspace" --exclude=./memories .
arguments=$(printf '{"command": %s}' "$(printf %s "$command" | json)")
cat >"$folder/record.json" <<END
{"input": [{"role": "user", "content": $(printf %s "$task" | json)}],
 "generated_items": [
   {"type": "function_call", "call_id": "c1", "name": "shell", "arguments": $(printf %s "$arguments" | json)},
   {"type": "function_call_output", "call_id": "c1",
    "output": $({ tail -c 1000000 "$folder/output"; echo "exit code $status"; } | json)}],
 "terminal_metadata": {"terminal_state": "completed", "exception_type": null, "exception_message": null,
                       "has_final_output": false}}
END

# 4. The workspace as it is now, as an archive. The answer is a claim: the hash and the size of what was taken.
ask "$folder/claim.json" --request POST --upload-file "$folder/left.tar" -H 'content-type: application/x-tar' \
  "$base_url/archives"

# 5. One event: the run is over. `base` is what the workspace began as, so that it never replaces what it did not see.
began=null
[ -z "$seed" ] || began="\"$seed\""
cat >"$folder/event.json" <<END
{"project": "$project", "memory": "$memory", "run_id": "$run", "conversation_id": $(printf %s "$conversation" | json),
 "record": $(cat "$folder/record.json"),
 "workspaces": [{"archive": $(cat "$folder/claim.json"), "base": $base}], "seed": $began}
END
ask "$folder/taken.json" --data-binary @"$folder/event.json" -H 'content-type: application/json' "$base_url/events"
kept=""
cat "$folder/taken.json" >&2
echo >&2
echo "$run" >"${RUN_FILE:-/dev/null}"
exit "$status"

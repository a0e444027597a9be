#!/bin/sh
# One run of an agent that knows nothing of Runlore but HTTP: it begins with the memory and the workspace of the run
# before it, and leaves both for the next.
#
#     ./agent.sh CONVERSATION TASK COMMAND
#
# The "agent" is a shell: it does COMMAND in its workspace. What a run did goes in as any chat would: what the user
# asked, the tool's call, what it printed. Needs curl and tar. Where the service is: RUNLORE_URL, RUNLORE_KEY.
set -eu

conversation=$1 task=$2 command=$3
url=${RUNLORE_URL:-http://127.0.0.1:7077}
project=${PROJECT:-acme} memory=${MEMORY:-support}
base_url="$url/v1/projects/$project"
run="run-$(date +%s)-$$"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/workspace"

# Ask the service; its errors are JSON with a `kind`, shown as they are.
ask() {
  if [ -n "${RUNLORE_KEY:-}" ]; then set -- -H "Authorization: Bearer $RUNLORE_KEY" "$@"; fi
  curl --silent --show-error --fail-with-body "$@"
}

# A string, or the object `base`, out of a JSON answer. In a language with a JSON parser: use that.
text_of() { tr -d '\n' | sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p'; }
base_of() { tr -d '\n' | sed -n 's/.*"base": *\({[^}]*}\).*/\1/p'; }

# Any text as a JSON string.
json() {
  tab=$(printf '\t')
  printf '"%s"' "$(tr -d '\000-\010\013-\037\177' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e "s/$tab/\\\\t/g" |
    awk 'NR > 1 { printf "\\n" } { printf "%s", $0 }')"
}

# 1. The seed: which memory and which workspace this run begins with. `AFTER_RUN` is a run that it must hold.
set -- --get "$base_url/memories/$memory/seed" --data-urlencode "conversation_id=$conversation"
if [ -n "${AFTER_RUN:-}" ]; then
  tries=300
  until ask "$base_url/runs/$AFTER_RUN" 2>&1 | grep -q '"stage": *"snapshot"'; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { echo "the workspace of $AFTER_RUN is not there yet" >&2; exit 1; }
    sleep 0.1
  done
  set -- "$@" --data-urlencode "wait_for=$AFTER_RUN" --data-urlencode "wait_seconds=60"
fi
ask "$@" >"$folder/seed.json"
seed=$(text_of seed <"$folder/seed.json")
base=$(base_of <"$folder/seed.json")

# 2. The workspace, with the memory in memories/: one tar. Without a seed the run begins with nothing.
if [ -n "$seed" ]; then
  ask "$base_url/seeds/$seed/workspace.tar" >"$folder/workspace.tar"
  tar -xf "$folder/workspace.tar" -C "$folder/workspace"
fi

# 3. The work. An agent would now read memories/memory_summary.md into its prompt.
status=0
(cd "$folder/workspace" && sh -c "$command") >"$folder/output" 2>&1 || status=$?
cat "$folder/output"

# 4. What is in the workspace now, as an archive. The answer is a claim: the hash and the size of what was taken.
tar -cf "$folder/left.tar" -C "$folder/workspace" --exclude=./memories .
claim=$(ask --request POST --upload-file "$folder/left.tar" -H 'content-type: application/x-tar' "$base_url/archives")

# 5. One event: the run is over. `base` is what the workspace began as, so that it never replaces what it did not see.
began=null
[ -z "$seed" ] || began="\"$seed\""
arguments=$(printf '{"command": %s}' "$(printf %s "$command" | json)")
cat >"$folder/event.json" <<EOF
{"project": "$project", "memory": "$memory", "run_id": "$run", "conversation_id": $(printf %s "$conversation" | json),
 "record": {
   "input": [{"role": "user", "content": $(printf %s "$task" | json)}],
   "generated_items": [
     {"type": "function_call", "call_id": "c1", "name": "shell", "arguments": $(printf %s "$arguments" | json)},
     {"type": "function_call_output", "call_id": "c1",
      "output": $({ cat "$folder/output"; echo "exit code $status"; } | json)}],
   "terminal_metadata": {"terminal_state": "completed", "exception_type": null, "exception_message": null,
                         "has_final_output": false}},
 "workspaces": [{"archive": $claim, "base": $base}], "seed": $began}
EOF
ask --data-binary @"$folder/event.json" -H 'content-type: application/json' "$base_url/events" >&2
echo >&2
echo "$run" >"${RUN_FILE:-/dev/null}"
exit "$status"

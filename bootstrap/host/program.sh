#!/bin/bash
# program.sh NAME: note what NAME is started from, then become it. The note is how the next `apply` knows whether what
# runs is what is asked, and how a restarted container knows what to start again. A disk that is full stops nothing.
export LC_ALL=C
cat "../bundle/$1"/* | sha256sum | cut -c1-64 >"started/$1.new" && mv "started/$1.new" "started/$1"
unset LC_ALL
# What a crash of it left behind goes first: vLLM's workers would hold the GPU's memory, a former door its port.
[ ! -e "$1.group" ] || kill -KILL -- "-$(cat "$1.group")"
echo "$$" >"$1.group" || rm -f "$1.group"
echo "=== $1 starts as $$, $(date -u +%FT%TZ)"
exec bash "../bundle/$1/run"

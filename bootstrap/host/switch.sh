# Ends this rental when nothing of ours lives here to do it: what `onstart` leaves running, in the workspace's root and
# with the container's own environment, its key included.
#
# switch.sh BOOT STALE DEADLINE
#   BOOT      seconds from the container's start by which an agent must have looked once
#   STALE     seconds that an agent may be silent from then on: its heartbeat is the time of run/heartbeat
#   DEADLINE  the same moment as BOOT's by the wall clock, unix seconds; the earlier one counts
# Time is the kernel's, from its start: a clock that is set changes nothing, and no disk is needed.
uptime() { cut -d. -f1 /proc/uptime; }

ask_market() { # by curl, else by the Python that is sure to be there; the key stands in no argument
  printf 'header = "Authorization: Bearer %s"\n' "$CONTAINER_API_KEY" | curl -sS -m 30 -o /dev/null -X DELETE -K - "$1" && return
  printf '%s' "$CONTAINER_API_KEY" | python3 -c '
import sys, urllib.request as u
u.urlopen(u.Request(sys.argv[1], method="DELETE", headers={"Authorization": "Bearer " + sys.stdin.read()}), timeout=30)
' "$1"
}

end() { # for ever: a container that still runs is still paid for
  pause=1
  echo "$(date -u +%FT%TZ) $1: ending the rental"
  while :; do
    ask_market "${VAST_URL:-https://console.vast.ai}/api/v0/instances/$CONTAINER_ID/" 2>&1
    sleep "$pause"
    pause=$((pause < 30 ? pause * 2 : 60))
  done
}

# A quarter of BOOT is granted in any case: the container may come late, and the clock may be wrong.
limit=$1 left=$(($3 - $(date +%s)))
left=$((left < $1 / 4 ? $1 / 4 : left))
limit=$((left < limit ? left : limit))
look=$((limit < $2 ? limit : $2))
look=$((look / 20)) look=$((look < 1 ? 1 : look > 10 ? 10 : look))
since=$(uptime) seen=
while :; do
  beat=$(stat -c %y run/heartbeat 2>/dev/null)
  now=$(uptime)
  [ "$beat" = "$seen" ] || { seen=$beat since=$now limit=$2; }
  [ $((now - since)) -lt "$limit" ] || end "no sign of an agent for $((now - since)) s"
  sleep "$look"
done

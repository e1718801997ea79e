# Ends one run: every process that its folder records, then the folder. usage: reaper.sh FOLDER [keep-logs]
#
# The harness starts it with a pipe as standard input and holds the other end: the pipe closes when the
# harness is gone, however it went (end, panic, kill -9), and not before. Called with an empty standard
# input it acts at once. A record is "PID START": the start time tells a process from a later one that
# got the same pid.
cat > /dev/null
folder=$1
for record in "$folder"/children/*; do
  [ -f "$record" ] || continue
  read -r pid start < "$record"
  stat=$(cat "/proc/$pid/stat" 2> /dev/null) || continue
  # Fields after the command's name, which may hold blanks: state first, start time twentieth.
  set -- ${stat##*) }
  [ "${20}" = "$start" ] && kill -9 "$pid" 2> /dev/null
done
if [ "$KEEP_LOGS" = yes ] || [ -e "$folder/logs/keep" ]; then
  doomed="$folder/owner $folder/children $folder/servers"
else
  doomed=$folder
fi
# A server's children write into its folder until they notice that it is gone.
tries=0
until rm -rf $doomed 2> /dev/null || [ $tries -ge 100 ]; do
  sleep 0.1
  tries=$((tries + 1))
done

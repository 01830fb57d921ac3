#!/bin/busybox sh
# The first and only program of the lab's initramfs. One script, four stories, told apart by the kernel
# command line:
#
#   lab.marker=WORD      this is an installed disk: say so and switch off
#   holdfast.site=URL    a machine that a site installs: register, ask, write the disk, report, switch off
#   lab.report=URL       the baseline: one GET, and off
#   none of them         says so, and off
#
# Every line for the test begins with HOLDFAST and goes to the serial console. Each message to the site has an
# id of its own and is repeated with that id until an HTTP answer comes, however long the site is away: a
# report that was counted twice would be a fault of the site, one that was lost a fault of this script.

export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
[ -c /dev/ttyS0 ] && exec </dev/null >/dev/ttyS0 2>&1
dmesg -n 1 # The kernel's own words would cut into our lines.
echo       # Nor may they go on where iPXE stopped: SeaBIOS may still owe the end of its last line to the console.

say() { echo "HOLDFAST $*"; }

off() {
  sync
  poweroff -f
  sleep 600
}

stop() {
  say "stop: $*"
  off
}

# argument NAME: its value on the kernel command line, or nothing.
argument() {
  for word in $(cat /proc/cmdline); do
    case $word in "$1="*) echo "${word#*=}" && return ;; esac
  done
}

new_id() { cat /proc/sys/kernel/random/uuid; }

# ---- devices and network

# Which of these needs which changed between kernels, so the list is walked twice.
load_modules() {
  for pass in 1 2; do
    for module in $(cat /modules/list); do insmod "/modules/$module.ko" 2>/dev/null; done
  done
}

# nic: the interface with the MAC of holdfast.mac, or the only one.
nic() {
  wanted=$(argument holdfast.mac | tr A-F a-f)
  for path in /sys/class/net/*; do
    [ "${path##*/}" = lo ] && continue
    if [ -z "$wanted" ] || [ "$(cat "$path/address")" = "$wanted" ]; then
      echo "${path##*/}" && return
    fi
  done
}

network_up() {
  nic=$(nic)
  [ -n "$nic" ] || stop "no network card $(argument holdfast.mac)"
  ip link set "$nic" up
  until udhcpc -i "$nic" -f -q -n -t 5 -T 2 -s /lease >/tmp/udhcpc 2>&1; do
    say "retry - dhcp: $(tail -n 1 /tmp/udhcpc)"
  done
}

# ---- speaking HTTP

# ask ID KIND [wget words]... URL: asks until there is an answer; its status goes to $status, its body to
# /tmp/answer. An answer that breaks off is none.
ask() {
  id=$1 kind=$2
  shift 2
  while true; do
    rm -f /tmp/answer
    timeout 20 wget -S -O /tmp/answer "$@" 2>/tmp/wget
    ended=$?
    status=$(sed -n 's|.*HTTP/1\.[01] \([0-9][0-9][0-9]\).*|\1|p' /tmp/wget | head -n 1)
    case $status:$ended in
      2??:0 | [345]??:*) break ;;
    esac
    say "retry $id $kind: $(tail -n 1 /tmp/wget)"
    sleep 1
  done
  say "report $id $kind $status"
}

# answer NAME: a text field of the last answer.
answer() { sed -n "s/.*\"$1\" *: *\"\([^\"]*\)\".*/\1/p" /tmp/answer 2>/dev/null | head -n 1; }

# refused: the last answer for a person; wget keeps the body of an error to itself.
refused() { echo "$status $({ cat /tmp/answer 2>/dev/null || tail -n 1 /tmp/wget; } | tr -s '\r\n' '  ')"; }

# ---- what this machine is

# text FILE: one line that fits between the quotes of JSON.
text() { cat "$1" 2>/dev/null | tr -d '"\\\000-\037'; }

disks() {
  for path in /sys/block/vd* /sys/block/sd*; do
    [ -e "$path/size" ] || continue
    echo "{\"name\":\"${path##*/}\",\"size_bytes\":$(($(cat "$path/size") * 512))}"
  done | paste -s -d ,
}

nics() {
  for path in /sys/class/net/*; do
    [ "${path##*/}" = lo ] || echo "{\"mac\":\"$(cat "$path/address")\"}"
  done | paste -s -d ,
}

registration() {
  firmware=bios
  [ -d /sys/firmware/efi ] && firmware=uefi
  dmi=/sys/class/dmi/id
  memory=$(($(sed -n 's/MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) * 1024))
  cat <<END
{"mac":"$(cat "/sys/class/net/$nic/address")","report":"$1","arch":"x86_64","firmware":"$firmware",
"serial":"$(text $dmi/product_serial)","system_uuid":"$(text $dmi/product_uuid)",
"vendor":"$(text $dmi/sys_vendor)","model":"$(text $dmi/product_name)",
"hardware":{"cpus":$(grep -c ^processor /proc/cpuinfo),"memory_bytes":$memory,"disks":[$(disks)],"nics":[$(nics)]}}
END
}

# ---- the install story

# event KIND [more JSON fields]
event() {
  report=$(new_id)
  ask "$report" "$1" --header "Content-Type: application/json" --header "Authorization: Bearer $token" \
    --post-data "{\"report\":\"$report\",\"task\":\"$task\",\"attempt\":$attempt,\"kind\":\"$1\"$2}" \
    "$site/api/v1/nodes/$node/event"
}

# The first write happens here and nowhere else, and only after the site has said so. A transfer that breaks
# off begins again; one that the site refuses, or that the disk does not take, is a failed installation.
write_image() {
  while true; do
    rm -f /tmp/fetched
    { wget -S -O - "$site/blobs/$1" 2>/tmp/wget && touch /tmp/fetched; } | dd of=/dev/vda bs=1M 2>/tmp/dd || return 1
    [ -e /tmp/fetched ] && return 0
    ! grep -q 'HTTP/1\.[01] [345]' /tmp/wget || return 1
    say "retry - image: $(tail -n 1 /tmp/wget)"
    sleep 1
  done
}

install() {
  task=$(argument holdfast.task) attempt=$(argument holdfast.attempt)
  token=$(argument holdfast.token) image=$(argument holdfast.image)

  report=$(new_id)
  ask "$report" register --header "Content-Type: application/json" \
    --post-data "$(registration "$report")" "$site/api/v1/nodes/register"
  node=$(answer node)
  [ "$status" = 200 ] && [ -n "$node" ] || stop "not registered: $(refused)"

  # Asked for only by a machine that could go: a missing /dev/vda would become a file that dd fills.
  [ -z "$image" ] || [ -b /dev/vda ] || stop "no disk to write to"
  event go_ahead
  case $status:$(answer answer) in
    200:go | 200:resume) ;;
    *) stop "$(refused)" ;;
  esac

  event install_started
  event progress ',"percent":0'
  if [ -n "$image" ]; then
    write_image "$image" || {
      event install_failed ',"error":"the image could not be written"'
      stop "no image: $(tail -n 1 /tmp/wget), $(tail -n 1 /tmp/dd)"
    }
  fi
  event progress ',"percent":50' # All bytes are with the kernel,
  sync
  event progress ',"percent":100' # and now on the disk.
  event install_complete
  say "installed"
  off
}

# ---- which story

marker=$(argument lab.marker)
if [ -n "$marker" ]; then
  say "marker $marker"
  off
fi

load_modules
site=$(argument holdfast.site)
once=$(argument lab.report)
if [ -n "$site" ]; then
  network_up
  install
elif [ -n "$once" ]; then
  network_up
  ask "$(new_id)" baseline "$once"
  off
else
  stop "nothing to do: $(cat /proc/cmdline)"
fi

# Common settings and functions of the lab. Sourced by every script here; never run by itself.
# shellcheck shell=bash
set -euo pipefail

LAB_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LAB_HOME=${LAB_HOME:-/opt/osc-drp-lab}      # everything the lab writes lives here
PROJECT_DIR=$(dirname "$LAB_DIR")           # what the operator's client is installed from
VENV=$LAB_HOME/venv                         # the cloud
CLIENT=$LAB_HOME/client                     # the operator's machine: openstackclient, osc-drp and pytest
ETC=$LAB_HOME/etc
RUN=$LAB_HOME/run                           # pid files, sockets, boot id: lost at a power loss
LOG=$LAB_HOME/log
VAR=$LAB_HOME/var                           # what survives a power loss: databases, SAN, guests, secrets
SAN=$LAB_HOME/san                           # mount point of the "SAN" (a loop-mounted ext4 image in VAR)
# Ports below 32768, where Linux begins to give out ports to connections: such a one could be taken.
DB_PORT=${LAB_DB_PORT:-23306}
MQ_PORT=${LAB_MQ_PORT:-25692}               # and the one above it, for Erlang
EPMD_PORT=${LAB_EPMD_PORT:-24369}
KEYSTONE_PORT=${LAB_KEYSTONE_PORT:-5000}
GLANCE_PORT=${LAB_GLANCE_PORT:-9292}
PLACEMENT_PORT=${LAB_PLACEMENT_PORT:-8778}
NOVA_PORT=${LAB_NOVA_PORT:-8774}
CINDER_PORT=${LAB_CINDER_PORT:-8776}
NEUTRON_PORT=${LAB_NEUTRON_PORT:-9696}
MAX_LIMIT=${LAB_MAX_LIMIT:-1000}            # page size of the nova and cinder APIs: lab/restart nova-api cinder-api
SYNC_INTERVAL=${LAB_SYNC_INTERVAL:-10}      # seconds between nova-compute's looks at its guests (nova's default: 600)
GUEST_SSH_PORT=${LAB_GUEST_SSH_PORT:-22100} # libvirt: the first guest's SSH server, on 127.0.0.1; the others follow
VIRT_TYPE=${LAB_VIRT_TYPE:-qemu}            # libvirt: qemu (emulated, runs anywhere) or kvm

# Every process of the cloud carries OSC_DRP_LAB; scripts carry OSC_DRP_LAB_SCRIPT besides, and are not part of it.
export OSC_DRP_LAB="$LAB_HOME" OSC_DRP_LAB_SCRIPT=1
CALLER_PATH=$PATH
export PATH="$LAB_DIR/shims:$VENV/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
export PYTHONPATH="$LAB_DIR/python" PYTHONWARNINGS=ignore
export OS_CLIENT_CONFIG_FILE="$ETC/clouds.yaml" OS_CLOUD=lab
unset PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PYTHONHOME

# In the order of a boot
SERVICES=(mariadb rabbitmq libvirtd keystone placement-api nova-conductor1 nova-conductor2 nova-super-conductor nova-compute1
          nova-compute2 neutron-api nova-api cinder-api cinder-volume cinder-scheduler nova-scheduler cinder-backup glance-api)
CELLS=(nova_cell0 nova_cell1 nova_cell2)

say() { printf '%(%H:%M:%S)T %s\n' -1 "$*" >&2; }
die() { say "ERROR: $*"; exit 1; }

# The hypervisor of compute1: "fake" (guests in a JSON file) or "libvirt" (QEMU guests). compute2 always has the fake one.
virt() { VIRT=${LAB_VIRT:-$(cat "$LAB_HOME/virt" 2>/dev/null || echo fake)}; }
virt

# One script at a time changes a lab; the scripts that it calls belong to it.
alone() {
    [ -z "${LAB_ALONE:-}" ] || return 0
    mkdir -p "$LAB_HOME"
    exec 9> "$LAB_HOME/lock"
    flock -n 9 || { say "waiting for another script of this lab"; flock -w 900 9 || die "another script holds $LAB_HOME/lock"; }
    export LAB_ALONE=1
}

# ---- secrets -------------------------------------------------------------------------------------
# Made once per lab and kept with the databases that know them. Each has characters that a URL must quote.
hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
urlquote() {
    local s=$1 out= c i
    for ((i = 0; i < ${#s}; i++)); do
        c=${s:i:1}
        case $c in [A-Za-z0-9._~-]) out+=$c ;; *) printf -v c '%%%02X' "'$c"; out+=$c ;; esac
    done
    echo "$out"
}
# cell0 and cell1 as templates, filled from a service's own [database] connection; cell2 as a plain URL
CELL_TEMPLATE='{scheme}://{username}:{password}@{hostname}:{port}'
DB_USERS=(keystone glance placement neutron nova_api nova nova_cell2 cinder)
secrets() {
    local u f=$VAR/secrets
    if [ ! -s "$f" ]; then
        mkdir -p "$VAR"
        (umask 077
         { echo "SECRET=lab-$(hex 6)"
           echo "MQ_PASSWORD=mq-$(hex 6)"        # plain: oslo.messaging hands it to kombu unquoted
           for u in "${DB_USERS[@]}"; do echo "DB_PASSWORD_$u=$(hex 4)@$(hex 3)/$u"; done
           echo "OSC_DRP_PASSWORD='$(hex 4)@/:%#?+&=$(hex 4)!'"
           echo "PLANTED_CHAP_PASSWORD=Chp$(hex 9)"
           echo "PLANTED_CEPH_KEY=AQ$(hex 17)=="
         } > "$f.new"; mv "$f.new" "$f")
    fi
    # shellcheck disable=SC1090
    . "$f"
    export LAB_SECRET=$SECRET
    MQ_URL=rabbit://lab:$MQ_PASSWORD@127.0.0.1:$MQ_PORT
    local p
    for u in "${DB_USERS[@]}"; do
        p=DB_PASSWORD_$u
        printf -v "DB_URL_$u" 'mysql+pymysql://%s:%s@127.0.0.1:%s' "$u" "$(urlquote "${!p}")" "$DB_PORT"
    done
    CELL_URL=("$CELL_TEMPLATE/nova_cell0?{query}" "$CELL_TEMPLATE/nova_cell1?charset=utf8mb3"
              "$DB_URL_nova_cell2/nova_cell2?charset=utf8mb3")
}

# ---- configuration -------------------------------------------------------------------------------
# Templates: @NAME@ -> value of $NAME
render() { # template target [mode]
    local expr=() v text
    mkdir -p "$(dirname "$2")"
    for v in LAB_DIR LAB_HOME VENV ETC RUN LOG VAR SAN SECRET DB_PORT MQ_PORT EPMD_PORT KEYSTONE_PORT GLANCE_PORT PLACEMENT_PORT \
             NOVA_PORT CINDER_PORT NEUTRON_PORT COMPUTE_DRIVER VIRT_TYPE MAX_LIMIT SYNC_INTERVAL MQ_URL NOVA_VHOST NOVA_HOST \
             NOVA_STATE GUEST_SSH_PORT DB_URL_keystone DB_URL_glance DB_URL_placement DB_URL_neutron DB_URL_cinder; do
        expr+=(-e "s|@$v@|${!v:-}|g")
    done
    text=$(sed "${expr[@]}" "$1"; echo .)
    (umask 077; printf '%s' "${text%.}" > "$2.new"); chmod "${3:-600}" "$2.new"; mv "$2.new" "$2"
}

render_nova() { # name vhost host state_path driver; the database sections on stdin
    NOVA_VHOST=$2 NOVA_HOST=$3 NOVA_STATE=$4 COMPUTE_DRIVER=$5 render "$LAB_DIR/templates/nova.conf" "$ETC/nova/$1"
    cat >> "$ETC/nova/$1"
}

render_all() {
    local s n driver
    case $VIRT in fake | libvirt) ;; *) die "LAB_VIRT must be fake or libvirt" ;; esac
    mkdir -p "$RUN" "$LOG" "$VAR" "$SAN" "$ETC"
    chmod 711 "$LAB_HOME" "$ETC"
    secrets
    echo "$VIRT" > "$LAB_HOME/virt"
    for s in keystone glance placement nova cinder neutron; do
        mkdir -p "$ETC/$s" "$VAR/$s" "$RUN/$s"
        # paste files and the like as shipped in the wheels
        [ -e "$ETC/$s/.shipped" ] || { [ -d "$VENV/etc/$s" ] && cp -r "$VENV/etc/$s/." "$ETC/$s/"; touch "$ETC/$s/.shipped"; }
    done
    render "$LAB_DIR/templates/keystone.conf"   "$ETC/keystone/keystone.conf"
    render "$LAB_DIR/templates/glance-api.conf" "$ETC/glance/glance-api.conf"
    render "$LAB_DIR/templates/placement.conf"  "$ETC/placement/placement.conf"
    render "$LAB_DIR/templates/neutron.conf"    "$ETC/neutron/neutron.conf"
    render "$LAB_DIR/templates/cinder.conf"     "$ETC/cinder/cinder.conf"
    render "$LAB_DIR/templates/my.cnf"          "$ETC/my.cnf" 644
    render "$LAB_DIR/templates/rabbitmq.conf"   "$ETC/rabbitmq/rabbitmq.conf"
    render "$LAB_DIR/templates/clouds.yaml"     "$ETC/clouds.yaml"
    if [ "$VIRT" = libvirt ]; then
        render "$LAB_DIR/templates/libvirtd.conf" "$ETC/libvirtd.conf"
        render "$LAB_DIR/templates/qemu-system-x86_64" "$ETC/libvirt-path/qemu-system-x86_64" 755
    fi
    echo "127.0.0.1:/srv/san" > "$ETC/cinder/nfs_shares"
    echo '[].' > "$ETC/rabbitmq/enabled_plugins"
    local perms="" v
    for v in nova cell1 cell2 cinder neutron; do
        perms+="${perms:+, }{\"user\": \"lab\", \"vhost\": \"$v\", \"configure\": \".*\", \"write\": \".*\", \"read\": \".*\"}"
    done
    (umask 077; printf '{"users": [{"name": "lab", "password": "%s", "tags": "administrator"}],\n "vhosts": [%s],\n "permissions": [%s]}\n' \
        "$MQ_PASSWORD" '{"name": "nova"}, {"name": "cell1"}, {"name": "cell2"}, {"name": "cinder"}, {"name": "neutron"}' "$perms" \
        > "$ETC/rabbitmq/definitions.json")

    # nova: the API's (scheduler's, super conductor's) configuration, one per cell for its conductor, one per compute
    local db="charset=utf8mb3"
    # shellcheck disable=SC2154
    render_nova nova.conf nova lab "$VAR/nova" none <<C
[api_database]
connection = $DB_URL_nova_api/nova_api?$db
max_pool_size = 5
[database]
connection = $DB_URL_nova/nova_cell0?$db
max_pool_size = 5
# a cell that is down is told within seconds, not minutes
max_retries = 1
retry_interval = 1
C
    render_nova nova-cell1.conf cell1 lab "$VAR/nova" none <<C
[database]
connection = $DB_URL_nova/nova_cell1?$db
max_pool_size = 5
C
    # shellcheck disable=SC2154
    render_nova nova-cell2.conf cell2 lab "$VAR/nova" none <<C
[database]
connection = $DB_URL_nova_cell2/nova_cell2?$db
max_pool_size = 5
C
    # nova-compute must not have the databases' addresses (it talks to its cell's conductor)
    for n in 1 2; do
        driver=osc_drp_lab.LabDriver
        [ "$n$VIRT" = 1libvirt ] && driver=libvirt.LibvirtDriver
        mkdir -p "$VAR/compute$n/instances"
        render_nova "nova-cpu$n.conf" "cell$n" "compute$n" "$VAR/compute$n" "$driver" < /dev/null
        # the compute node's identity: it has to be there from the first start on
        [ -e "$VAR/compute$n/compute_id" ] || cat /proc/sys/kernel/random/uuid > "$VAR/compute$n/compute_id"
    done
    # nova takes its compute_driver from the package nova.virt only
    for s in "$VENV"/lib/python3*/site-packages/nova/virt; do
        # once: a nova-compute of another lab with this software (CI's second) may be reading it
        [ ! -d "$s" ] || [ -s "$s/osc_drp_lab.py" ] || {
            echo "from labdrivers.fakevirt import LabDriver  # noqa: F401" > "$s/osc_drp_lab.py.new"
            mv "$s/osc_drp_lab.py.new" "$s/osc_drp_lab.py"
        }
    done

    # what osc-drp is given
    ln -sfn nova/nova.conf "$ETC/nova.conf"
    ln -sfn cinder/cinder.conf "$ETC/cinder.conf"
    (umask 077
     printf '%s\n' "$OSC_DRP_PASSWORD" > "$ETC/osc-drp.password"
     printf '[database]\nuser = osc_drp\npassword_file = %s\n' "$ETC/osc-drp.password" > "$ETC/osc-drp.conf"
     printf '{"auth_url": "http://127.0.0.1:%s/v3", "nova": "http://127.0.0.1:%s/v2.1", "cinder": "http://127.0.0.1:%s/v3", "password": "%s"}\n' \
        "$KEYSTONE_PORT" "$NOVA_PORT" "$CINDER_PORT" "$SECRET" > "$ETC/lab.json"
     printf '%s\n' "$PLANTED_CHAP_PASSWORD" "$PLANTED_CEPH_KEY" > "$ETC/planted-secrets")
}

# ---- processes -----------------------------------------------------------------------------------
# A pid file holds the pid and the start time of a session leader (pids come round again, start times do not).
# Who has ended and whom nobody waited for, a zombie, has them still: not alive.
starttime() {
    local st; { read -r st < "/proc/$1/stat"; } 2>/dev/null || return 1
    st=${st##*) }; set -- $st; [ "$1" != Z ] && echo "${20}"
}
alive() { # name
    local p t; { read -r p t < "$RUN/$1.pid"; } 2>/dev/null || return 1
    [ "$(starttime "$p")" = "$t" ]
}
start() { # name command...
    local name=$1; shift
    alive "$name" && return 0
    # setsid: a session of its own, so nothing of it hangs on the calling shell
    (cd "$LAB_HOME" && exec env -u OSC_DRP_LAB_SCRIPT -u LAB_ALONE setsid "$@" >> "$LOG/$name.log" 2>&1 < /dev/null 9>&-) &
    echo "$! $(starttime $!)" > "$RUN/$name.pid"
    disown $! 2>/dev/null || true
}
# Everything of this lab that runs, whoever started it: see python/processes.py
lab_processes() { /usr/bin/python3 -I "$LAB_DIR/python/processes.py" "$LAB_HOME" "$@"; }

stop_service() { # name [seconds to end by itself]
    local p t end=$((SECONDS + ${2:-5}))
    if alive "$1"; then
        read -r p t < "$RUN/$1.pid"
        [ "${2:-5}" = 0 ] || kill -TERM "$p" 2>/dev/null || true
        while alive "$1" && [ $SECONDS -lt $end ]; do sleep 0.1; done
        lab_processes kill-session "$p" "$t"
    fi
    rm -f "$RUN/$1.pid"
}

wait_for() { # seconds description command...
    local n=$1 what=$2 end; shift 2; end=$((SECONDS + n))
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || die "$what did not come up in ${n}s (logs: $LOG)"
        sleep 0.2
    done
}
port_open() { (exec 3<> "/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
http_ok() { curl -s -o /dev/null -m 20 -w '%{http_code}' "$1" | grep -qE '^[234]'; }

db() { mariadb --no-defaults -uroot -S "$RUN/mysqld.sock" "$@"; }

unmount_all() {
    local m d
    for m in $(awk -v h="$LAB_HOME/" 'index($2, h) == 1 {print $2}' /proc/mounts | sort -ru); do
        while mountpoint -q "$m"; do umount "$m" 2>/dev/null || umount -l "$m" || break; done
    done
    for d in $(losetup -n -O NAME,BACK-FILE 2>/dev/null | awk -v h="$LAB_HOME/" 'index($2, h) == 1 {print $1}'); do
        losetup -d "$d" 2>/dev/null || true
    done
}

# ---- services ------------------------------------------------------------------------------------
start_san() {
    local img=$VAR/san.img
    mountpoint -q "$SAN" && return 0
    mkdir -p "$SAN"
    if [ ! -e "$img" ]; then
        truncate -s 20G "$img.new"; mkfs.ext4 -q -F "$img.new"; mv "$img.new" "$img"
    fi
    mount -o loop "$img" "$SAN"
    mkdir -p "$SAN/export" "$SAN/backups"
}

start_mariadb() {
    if [ ! -e "$VAR/mysql/.installed" ]; then
        rm -rf "$VAR/mysql"; mkdir -p "$VAR/mysql"
        mariadb-install-db --no-defaults --user=root --datadir="$VAR/mysql" --auth-root-authentication-method=normal \
            --skip-test-db > "$LOG/mariadb-install.log" 2>&1
        touch "$VAR/mysql/.installed"
    fi
    start mariadb mariadbd --defaults-file="$ETC/my.cnf" --user=root
}

start_rabbitmq() {
    # nothing of it survives: OpenStack's queues are not durable, and users and vhosts come from definitions.json
    mkdir -p "$RUN/rabbitmq"
    HOME=$RUN/rabbitmq ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$EPMD_PORT \
    RABBITMQ_NODENAME=osc-drp-lab@localhost RABBITMQ_MNESIA_BASE=$RUN/rabbitmq RABBITMQ_LOG_BASE=$LOG/rabbitmq \
    RABBITMQ_CONFIG_FILE=$ETC/rabbitmq/rabbitmq.conf RABBITMQ_ENABLED_PLUGINS_FILE=$ETC/rabbitmq/enabled_plugins \
    RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_ADVANCED_CONFIG_FILE=$ETC/rabbitmq/none \
    RABBITMQ_PID_FILE=$RUN/rabbitmq-beam.pid RABBITMQ_DIST_PORT=$((MQ_PORT + 1)) \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1} +sbwt none' \
        start rabbitmq /usr/lib/rabbitmq/bin/rabbitmq-server
}

start_libvirtd() {
    [ "$VIRT" = libvirt ] || return 0
    mkdir -p /run/libvirt
    # guests as root, without cgroups, security drivers, mount namespaces and virtlogd: none of them is to be had here
    if ! grep -q '# osc-drp lab' /etc/libvirt/qemu.conf; then
        printf '%s\n' '# osc-drp lab' 'user = "root"' 'group = "root"' 'dynamic_ownership = 0' 'security_driver = "none"' \
            'namespaces = []' 'cgroup_controllers = []' 'stdio_handler = "file"' >> /etc/libvirt/qemu.conf
    fi
    PATH=$ETC/libvirt-path:$PATH start libvirtd /usr/bin/python3 -I "$LAB_DIR/python/reaper.py" \
        libvirtd --config "$ETC/libvirtd.conf" --pid-file "$RUN/libvirtd-own.pid"
    wait_for 60 libvirtd virsh -c qemu:///system version
}

# /run is empty after a boot; what is left there of guests that are gone, libvirtd would try to take up
forget_guests() { rm -f /run/libvirt/qemu/instance-*.pid /run/libvirt/qemu/instance-*.xml; }

uwsgi_api() { # name module port [extra uwsgi options]
    local name=$1 module=$2 port=$3; shift 3
    start "$name" uwsgi --http-socket "127.0.0.1:$port" --module "$module" --master --processes "${LAB_API_WORKERS:-1}" \
        --threads 4 --enable-threads --lazy-apps --need-app --die-on-term --buffer-size 65535 --http-chunked-input \
        --add-header 'Connection: close' --procname-prefix-spaced "$name" \
        --req-logger "file:$LOG/$name.requests" --log-format '%(method) %(uri) %(status) %(uagent)' "$@"
}

start_service() { # name: returns at once; starts nothing that runs already
    local n=$ETC/nova c=$ETC/cinder/cinder.conf
    case $1 in
        mariadb) start_mariadb ;;
        rabbitmq) start_rabbitmq ;;
        libvirtd) start_libvirtd ;;
        keystone) OS_KEYSTONE_CONFIG_DIR=$ETC/keystone uwsgi_api keystone keystone.wsgi.api:application "$KEYSTONE_PORT" ;;
        glance-api) OS_GLANCE_CONFIG_DIR=$ETC/glance uwsgi_api glance-api glance.wsgi.api:application "$GLANCE_PORT" ;;
        placement-api) OS_PLACEMENT_CONFIG_DIR=$ETC/placement \
            uwsgi_api placement-api placement.wsgi.api:application "$PLACEMENT_PORT" ;;
        neutron-api) OS_NEUTRON_CONFIG_DIR=$ETC/neutron OS_NEUTRON_CONFIG_FILES=neutron.conf \
            uwsgi_api neutron-api neutron.wsgi.api:application "$NEUTRON_PORT" ;;
        nova-api) OS_NOVA_CONFIG_DIR=$n uwsgi_api nova-api nova.wsgi.osapi_compute:application "$NOVA_PORT" ;;
        cinder-api) uwsgi_api cinder-api cinder.wsgi.api:application "$CINDER_PORT" --pyargv "--config-file $c" ;;
        nova-super-conductor) start "$1" nova-conductor --config-file "$n/nova.conf" ;;
        nova-conductor[12]) start "$1" nova-conductor --config-file "$n/nova-cell${1#nova-conductor}.conf" ;;
        nova-scheduler) start "$1" nova-scheduler --config-file "$n/nova.conf" ;;
        nova-compute[12]) start "$1" nova-compute --config-file "$n/nova-cpu${1#nova-compute}.conf" ;;
        cinder-scheduler | cinder-volume | cinder-backup) start "$1" "$1" --config-file "$c" ;;
        *) die "no service $1; there are: ${SERVICES[*]}" ;;
    esac
}
wait_service() { # name: until it answers (the workers: until they run)
    case $1 in
        mariadb) wait_for 90 MariaDB db -e 'select 1' ;;
        rabbitmq) wait_for 90 RabbitMQ port_open "$MQ_PORT" ;;
        keystone) wait_for 90 keystone http_ok "http://127.0.0.1:$KEYSTONE_PORT/v3" ;;
        glance-api) wait_for 90 glance http_ok "http://127.0.0.1:$GLANCE_PORT/" ;;
        placement-api) wait_for 90 placement http_ok "http://127.0.0.1:$PLACEMENT_PORT/" ;;
        neutron-api) wait_for 90 neutron http_ok "http://127.0.0.1:$NEUTRON_PORT/" ;;
        nova-api) wait_for 90 nova http_ok "http://127.0.0.1:$NOVA_PORT/" ;;
        cinder-api) wait_for 90 cinder http_ok "http://127.0.0.1:$CINDER_PORT/" ;;
        *) wait_for 10 "$1" alive "$1" ;;
    esac
}

start_everything() { # but not what LAB_WITHOUT names (a list: "keystone nova-compute2")
    local s began=$SECONDS without=" ${LAB_WITHOUT:-} " wanted=() new=() ask=1
    for s in $without; do stop_service "$s" 0; done         # it may be what a quick restore left running
    [ -e "$RUN/boot_id" ] || cat /proc/sys/kernel/random/uuid > "$RUN/boot_id"
    for s in "${SERVICES[@]}"; do
        case $s in mariadb | rabbitmq) ;; libvirtd) [ "$VIRT" = libvirt ] && wanted+=("$s") ;;
            *) [[ $without == *" $s "* ]] || wanted+=("$s") ;; esac
    done
    start_san
    [[ $without == *" rabbitmq "* ]] || start_service rabbitmq
    if [[ $without != *" mariadb "* ]]; then start_service mariadb; wait_service mariadb; fi
    for s in "${wanted[@]}"; do
        alive "$s" || new+=("$s")
        start_service "$s"
        # the rest needs these two soon after its start, and asks again only after a long sleep
        case $s in placement-api) [[ $without == *" keystone "* ]] || wait_service keystone ;; esac
    done
    for s in "${wanted[@]}"; do wait_service "$s"; done
    # nobody to ask without these; what was started runs, and that is all that is known then
    for s in mariadb rabbitmq keystone nova-api cinder-api; do [[ $without == *" $s "* ]] && ask=; done
    if [ -n "$ask" ]; then
        # shellcheck disable=SC2086
        python "$LAB_DIR/python/wait_services.py" "${new[@]}" -- $without || die "not all services came up (logs: $LOG)"
    fi
    say "all services are up after $((SECONDS - began))s${LAB_WITHOUT:+, without $LAB_WITHOUT}"
}

# the newest server of that name or id, in any cell: UUID and HOST (where it is or was last)
find_server() {
    [[ $1 =~ ^[A-Za-z0-9_.-]+$ ]] || die "no name or id of a server: $1"
    read -r UUID HOST < <(db -NBe "SELECT uuid, COALESCE(host, 'none') FROM
        (SELECT * FROM nova_cell1.instances UNION ALL SELECT * FROM nova_cell2.instances) i
        WHERE deleted = 0 AND (display_name = '$1' OR uuid = '$1') ORDER BY created_at DESC LIMIT 1") || die "no server $1"
}

# source this: the operator's client (openstack, with osc-drp) first in PATH, and the lab's clouds: lab (admin), lab-blue, lab-green
LAB_HOME=${LAB_HOME:-/opt/osc-drp-lab}
export LAB_HOME PATH="$LAB_HOME/client/bin:$PATH" OS_CLIENT_CONFIG_FILE="$LAB_HOME/etc/clouds.yaml" OS_CLOUD="${OS_CLOUD:-lab}"

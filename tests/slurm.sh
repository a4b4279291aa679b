#!/usr/bin/env bash
# Starts SLURM on this one machine, on loopback, in the folder $1, and stops it: slurm.sh FOLDER start|stop.
# Needs Debian's slurm-wlm and munge, and root.
set -euo pipefail
folder=$1 host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf
if [[ $2 == stop ]]; then
  for name in slurmd slurmctld munged; do
    [[ -f $folder/$name.pid ]] && kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
  done
  exit 0
fi
mkdir -p "$folder/state" "$folder/spool"
chmod 755 "$folder"
cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
JobAcctGatherType=jobacct_gather/none
MinJobAge=300
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
mkdir -p /run/munge && chown munge:munge /run/munge
munge -n >/dev/null 2>&1 || su -s /bin/bash munge -c "/usr/sbin/munged --force --pid-file=/run/munge/munged.pid"
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF"
for _ in $(seq 30); do
  sinfo -h -o %t 2>/dev/null | grep -q idle && exit 0
  sleep 1
done
echo "SLURM did not start: see $folder/*.log" >&2
exit 1

#!/bin/sh
# For Snakemake: "job.sh submit RULE THREADS MEM_MB GPU SCRIPT" creates a job and prints its name, and
# "job.sh status NAME" prints running, success or failed.
set -eu

case $1 in
    submit)
        rule=$(printf %s "$2" | tr _ -) # names in Kubernetes must not contain _
        sed -e "/^#/d" -e "s/RULE/$rule/" -e "s/THREADS/$3/" -e "s/MEM_MB/$4/" -e "s/GPU/$5/" -e "s|SCRIPT|$6|" \
            "$(dirname -- "$0")/job.yaml" | kubectl create -f - -o 'jsonpath={.metadata.name}'
        ;;
    status)
        case $(kubectl get job "$2" -o 'jsonpath={.status.succeeded}/{.status.failed}') in
            1/*) echo success ;;
            */1) echo failed ;;
            *) echo running ;;
        esac
        ;;
esac

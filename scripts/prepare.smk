"""Rules from a dataset in nnU-Net's raw format to preprocessed data and views, included by the Snakefiles.

They define S, the names and folders of the configuration.
"""

from arms import PLANNERS, on_a_free_gpu

FINGERPRINT = f"{S.preprocessed}/dataset_fingerprint.json"
DATA = f"{S.data_folder}.done"  # nnU-Net does not allow other files in the folder itself
VIEW_STAMP = S.view_folder("{view}") + ".sha256"
GPUS_OF_A_JOB = 1 if config["device"] == "cuda" else 0
GPU = on_a_free_gpu(config["gpus"])


wildcard_constraints:
    plans="|".join(PLANNERS),
    view=r"[\w.+-]+",


rule fingerprint:
    input: S.raw
    output: FINGERPRINT
    log: f"{S.logs}/fingerprint.log"
    threads: config["processes"]
    shell: "nnUNetv2_extract_fingerprint -d {S.number} --verify_dataset_integrity --clean -np {threads} &> {log}"


rule plan:
    input: FINGERPRINT
    output: f"{S.preprocessed}/{{plans}}.json"
    params: planner=lambda wildcards: PLANNERS[wildcards.plans]
    log: f"{S.logs}/plan-{{plans}}.log"
    shell: "nnUNetv2_plan_experiment -d {S.number} -pl {params.planner} &> {log}"


rule preprocess:
    input: f"{S.preprocessed}/{{plans}}.json"
    output: touch(f"{S.preprocessed}/{{plans}}_{S.configuration}.done")
    log: f"{S.logs}/preprocess-{{plans}}-{S.configuration}.log"
    threads: config["processes"]
    shell: "nnUNetv2_preprocess -d {S.number} -plans_name {wildcards.plans} -c {S.configuration} -np {threads} &> {log}"


rule view:
    input:
        DATA,
        lambda wildcards: expand(VIEW_STAMP, view=S.views[wildcards.view].matched or []),
    output: VIEW_STAMP
    params: options=lambda wildcards: S.views[wildcards.view].options
    log: f"{S.logs}/view-{S.configuration}-{{view}}.log"
    threads: config["processes"]
    resources: gpu=GPUS_OF_A_JOB
    shell:
        "({GPU}fvae-preprocess {S.number} -c {S.configuration} -p {S.data_plans} {params.options} "
        "-device {config[device]} -np {threads}) &> {log} && "
        "sha256sum {S.data_folder}__fvae_{wildcards.view}/manifest.json > {output}"

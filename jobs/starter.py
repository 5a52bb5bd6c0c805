"""Make the model that ships with the package: REAL_DIR=... python jobs/starter.py --set workdir=/tmp/starter"""

from mmva_platform.cli.job import run_job
from mmva_platform.training.starter import StarterJob, make_starter

if __name__ == "__main__":
    run_job(StarterJob, make_starter)

#!/usr/bin/env bash
# Every student alone on every corpus over five seeds; what is finished is not run again.
# usage: DATA=... IMDB=... MADE=... RUNS=... experiments/baselines/run.sh [corpus ...]
#   DATA: the folder that holds trec/, sst5/ and the others; IMDB: the archive; MADE: where chinese.py and imbalanced.py wrote.
set -u
declare -A corpora=(
  [trec]="data=files data.train=$DATA/trec/train.csv data.test=$DATA/trec/test.csv"
  [sst5]="data=files data.train=$DATA/sst5/train.csv data.validation_file=$DATA/sst5/dev.csv data.test=$DATA/sst5/test.csv"
  [banking77]="data=files data.train=$DATA/banking77/train.csv data.test=$DATA/banking77/test.csv"
  [clinc150]="data=files data.train=$DATA/clinc150/train.csv data.validation_file=$DATA/clinc150/dev.csv data.test=$DATA/clinc150/test.csv"
  [cad]="data=files data.train=$DATA/cad/train_paired.tsv data.validation_file=$DATA/cad/dev_paired.tsv data.test=$DATA/cad/test_paired.tsv data.text=Text data.label=Sentiment"
  [chinese]="data=files data.train=$MADE/chinese/train.csv data.test=$MADE/chinese/test.csv"
  [imbalanced]="data=files data.train=$MADE/imbalanced/train.csv data.validation_file=$MADE/imbalanced/dev.csv data.test=$MADE/imbalanced/test.csv selection.monitor=val/macro_f1"
  [imdb]="data=imdb data.path=$IMDB data.validation=1000"
)
for corpus in ${@:-trec sst5 banking77 clinc150 cad chinese imbalanced imdb}; do
  for student in ngram ngram_bag textcnn bilstm transformer; do
    for seed in 1 2 3 4 5; do
      folder=$RUNS/$corpus/$student/$seed
      [ -e "$folder/metrics.json" ] && continue
      # shellcheck disable=SC2086
      kdresearch train ${corpora[$corpus]} student=$student strategy=supervised seed=$seed study=baselines logger=csv \
        threads=1 trainer=cpu evaluation.efficiency=false hydra.run.dir="$folder" || exit 1
    done
  done
done

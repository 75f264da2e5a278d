# Two commands do all the set-up: `make quickstart` and `make test`.
DEVICE ?= cpu
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready-$(DEVICE)
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

# torch, fbgemm and torchrec are built for each other: constraints.txt has versions that fit.
FBGEMM_cpu := fbgemm-gpu-cpu
FBGEMM_cuda := fbgemm-gpu

.PHONY: quickstart test test-slow quality pareto format bench bench-quick bench-peers bench-sequences clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	@echo "installing into .venv (one to three minutes)"
	@$(PYTHON) -m venv .venv
	@$(PIP) torch $(FBGEMM_$(DEVICE))
	@$(PIP) --editable '.[dev]' tensordict torchmetrics tqdm pyre-extensions
	@# torchrec's metadata asks for the CUDA fbgemm even on a CPU, so its dependencies are named above
	@# tokenizers asks for a hub client that reading files does not need
	@$(PIP) --no-deps torchrec tokenizers
	@touch $@

quickstart: $(READY) ## install everything, then train, track, export, verify and score a small log
	@$(BIN)/recsys demo

test: $(READY) ## format, lint, types, doctests, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --doctest-modules recsys serving
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -rs tests

test-slow: $(READY) ## quality runs on real data (RECSYS_DATA_ROOT or ../shared/data)
	$(BIN)/pytest -rs -m slow tests

# The models of the published table, then our own settings.
ZOO := lr fm dnn wide_deep deepfm dcn dcnv2 xdeepfm autoint autoint_plus fibinet masknet dlrm pnn \
       final_net final_mlp fgcnn_no_norm fgcnn_deepfm fgcnn_wide final_mlp_wide
SEEDS ?= 3
DATA ?= ../shared/data

quality: $(READY) ## the zoo on Frappe into benchmarks/RESULTS.md: hours on two cores, resumable
	OMP_NUM_THREADS=1 $(BIN)/recsys benchmark $(ZOO:%=configs/frappe_%.yaml) --seeds $(SEEDS) \
		--workers 2 --data-root $(DATA) --published benchmarks/published.yaml \
		--report benchmarks/RESULTS.md

# Of vectors that are computed, a run over 1.7 M ids takes minutes to hours.
PLANTED := full,hash,double_hash,frequency,managed,unified,robe,quotient_remainder,mixed_dim,low_rank,product_quant,int8,int16,alpt

pareto: $(READY) ## all table methods under byte budgets on two logs: hours on two cores, resumable
	OMP_NUM_THREADS=1 $(BIN)/recsys compress configs/frappe_deepfm.yaml --budgets 1,0.5,0.1,0.02 \
		--set train.decay=cosine --set train.max_epochs=12 --set train.patience=50 --set train.precision=bf16 \
		--seeds $(SEEDS) --workers 2 \
		--data-root $(DATA) --report benchmarks/pareto/frappe.md --picture benchmarks/pareto/frappe.png
	$(BIN)/python -m benchmarks.planted_ids
	OMP_NUM_THREADS=1 $(BIN)/recsys compress configs/planted_ids_deepfm.yaml \
		--budgets 1,0.1,0.01,0.001 --methods $(PLANTED) --best 0.7896 --workers 2 \
		--data-root benchmarks/out \
		--report benchmarks/pareto/planted_ids.md --picture benchmarks/pareto/planted_ids.png

format: $(READY) ## format and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-peers: ## environment of the peers (.venv-peers), from the package registry
	bash benchmarks/peers.sh

bench: $(READY) bench-peers ## time ingestion, training and scoring against the peers
	$(BIN)/python -m benchmarks.run

bench-quick: $(READY) bench-peers ## the same on a small log
	$(BIN)/python -m benchmarks.run --quick

bench-sequences: $(READY) ## time the training of sequence models against RecBole (.venv-recbole)
	bash benchmarks/recbole.sh
	$(BIN)/python -m benchmarks.sequences
	$(BIN)/python -m benchmarks.catalogue

clean: ## remove environments and everything that was built
	rm -rf .venv .venv-peers .venv-recbole build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

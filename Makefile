# tokenflex: `make` prints the targets. Variants build in folders of their own: make VARIANT=asan ...
VARIANT ?= release
JOBS ?= $(shell nproc)
B := build/$(VARIANT)
CC ?= cc
ifneq ($(shell command -v ccache 2>/dev/null),)
CC := ccache $(CC)
endif

CFLAGS_release := -O2 -g
CFLAGS_debug := -O0 -g3
CFLAGS_asan := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
# Dies at named steps of a job when told to (common/fail_point.h).
CFLAGS_chaos := -O2 -g -DTF_FAIL_POINTS
CFLAGS_tsan := -O1 -g -fsanitize=thread -fno-omit-frame-pointer
PACKAGES := libzmq libsodium libprotobuf-c openblas libjpeg libpng libwebp libwebpdemux libwebpmux libheif dav1d libtiff-4 hiredis jansson libcurl libpcre2-8 libxxhash libmicrohttpd
# One short line a file; V=1 shows the commands.
say = $(if $(V),,@echo "  $(1)	$(patsubst $(B)/%,%,$@)";)
WARNINGS := -Wno-psabi -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wundef \
  $(if $(CI),-Werror)
CFLAGS += -std=c11 -D_GNU_SOURCE $(WARNINGS) $(CFLAGS_$(VARIANT)) -pthread -I. -I$(B)/gen \
  $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null)
LDFLAGS += $(CFLAGS_$(VARIANT)) -pthread -Wl,--as-needed
LDLIBS += $(shell pkg-config --libs $(PACKAGES) 2>/dev/null) -lgif -lm

# Every part is a library of its .c files but main.c; generated files join proto and router.
PARTS := common image tensor proto policy router encoder-svc llm-svc cli
GEN := $(B)/gen/proto/tokenflex.pb-c.c $(B)/gen/lua_scripts.c $(B)/gen/page_html.c $(B)/gen/status_html.c
GEN_H := $(B)/gen/proto/tokenflex.pb-c.h $(B)/gen/lua_scripts.h $(B)/gen/page_html.h $(B)/gen/status_html.h
sources = $(filter-out %/main.c,$(wildcard $(1)/*.c))
objects = $(patsubst %.c,$(B)/obj/%.o,$(call sources,$(1)))
GEN_OBJECTS := $(patsubst $(B)/gen/%.c,$(B)/obj/gen/%.o,$(GEN))
CORE_OBJECTS := $(foreach part,common image tensor proto policy,$(call objects,$(part))) $(GEN_OBJECTS)

# An archive, so that a program links only what it uses (the router needs no OpenBLAS).
CORE := $(B)/libtf_core.a

PROGRAMS := $(B)/tokenflex $(B)/tokenflex-router $(B)/tokenflex-encoder $(B)/tokenflex-llm
UNIT_TESTS := $(patsubst %.c,$(B)/%,$(wildcard tests/unit/test_*.c tests/golden/test_*.c))

.PHONY: help build caption evaluate test unit-tests packages test-packages model clean format format-check lint install loadtest test-long chaos cross-aarch64 bench-kernels bench bench-programs bench-instructions
help: ## print the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Each asks make again: pkg-config and the compiler may only be there after the packages are.
IMAGES ?= examples
caption: packages ## install, build, get the model, caption IMAGES=DIR (default: examples/; CAPTION_OPTIONS=)
	@$(MAKE) --no-print-directory -j$(JOBS) build model
	@images="$(IMAGES)"; case $$images in "~/"*) images=$$HOME/$${images#"~/"} ;; esac; \
	$(B)/tokenflex caption $(CAPTION_OPTIONS) "$$images"; status=$$?; \
	if [ $$status = 3 ]; then \
	  echo "make: the pictures named above could not be captioned, all others are (tokenflex caption itself ends with status 3)" >&2; \
	elif [ $$status != 0 ]; then \
	  echo "make: captioning did not get through (status $$status, the reason is above)" >&2; exit $$status; \
	fi
test: test-packages ## install, build, get the model, run every test (one suite: T=policy)
	@$(MAKE) --no-print-directory -j$(JOBS) build unit-tests model
	@BUILD=$(B) tests/run $(T)

chaos: test-packages ## kill, stop, cut everything under load (CHAOS_JOBS=1000, SEED=, ONLY=): half an hour
	@$(MAKE) --no-print-directory -j$(shell nproc) build model
	@$(MAKE) --no-print-directory -j$(shell nproc) VARIANT=chaos build
	@JOBS=$(or $(CHAOS_JOBS),1000) bash tests/chaos/run.sh
cross-aarch64: ## build for aarch64 into build/aarch64 and run its tests under qemu-user (some minutes)
	@JOBS=$(JOBS) tools/cross-aarch64
.PHONY: k8s-test
k8s-test: test-packages ## a real control plane here, our images and manifests on it, faults under load (ONLY=kills; root; half an hour)
	@$(MAKE) --no-print-directory -j$(JOBS) build model
	@BUILD=$(B) ONLY='$(ONLY)' tests/cluster/run.sh
test-long: test-packages ## the suites that take minutes: 100,000 pictures through stub tiers
	@$(MAKE) --no-print-directory -j$(JOBS) build
	@LONG=1 BUILD=$(B) SUITE_SECONDS_MAX=3600 tests/run batch_load
loadtest: packages ## load from idle to 1.5 times what the most tokens carry, and back: table and plots in build/loadtest (LOADTEST_S=480 a run)
	@$(MAKE) --no-print-directory -j$(JOBS) build model
	@BUILD=$(B) bench/loadtest.sh


# Scores of the shipped adapter, through PyTorch and through the programs. Data: see train/README.md.
EVALUATE_OPTIONS ?=
FEATURES = build/features-$(shell realpath "$(DATA)" 2>/dev/null | cksum | cut -d' ' -f1)
TRAIN_VENV := build/train-venv
evaluate: ## BLEU, METEOR, ROUGE-L, CIDEr-D and losses on the dev images of DATA=DIR (EVALUATE_OPTIONS="--images 300")
	@test -n "$(DATA)" || { echo "make evaluate needs DATA=DIR (captions.tsv or a Karpathy JSON, and the images)" >&2; exit 2; }
	@tools/install-packages run train
	@$(MAKE) --no-print-directory -j$(JOBS) build model $(TRAIN_VENV)/ready
	@$(TRAIN_PYTHON) -m train.features --data "$(DATA)" --model build/model --cache $(FEATURES) --splits dev --views plain \
	  --adapter build/model/adapter.gguf
	@echo "in PyTorch:"
	@$(TRAIN_PYTHON) -m train.evaluate --data "$(DATA)" --model build/model --cache $(FEATURES) \
	  --adapter build/model/adapter.gguf $(EVALUATE_OPTIONS)
	@echo "through tokenflex caption:"
	@$(TRAIN_PYTHON) -m train.pipeline --data "$(DATA)" --model build/model --program $(B)/tokenflex $(EVALUATE_OPTIONS)
TRAIN_PYTHON := PYTHONPATH=tools MALLOC_ARENA_MAX=1 $(TRAIN_VENV)/bin/python
$(TRAIN_VENV)/ready: train/requirements.txt
	@echo "  making $(TRAIN_VENV) (PyTorch: some gigabytes)"
	@python3 -m venv $(TRAIN_VENV) && $(TRAIN_VENV)/bin/pip install -q -r train/requirements.txt && touch $@

packages: ## install the Debian packages that are missing (root or sudo)
	@tools/install-packages run
test-packages:
	@tools/install-packages run test
model: ## fetch and convert the model into build/model
	@tools/model build/model

build: $(PROGRAMS) ## build the four programs into build/release

$(B)/tokenflex: $(B)/obj/cli/main.o $(call objects,cli) $(CORE)
$(B)/tokenflex-router: $(B)/obj/router/main.o $(call objects,router) $(CORE)
$(B)/tokenflex-encoder: $(B)/obj/encoder-svc/main.o $(call objects,encoder-svc) $(CORE)
$(B)/tokenflex-llm: $(B)/obj/llm-svc/main.o $(call objects,llm-svc) $(CORE)
$(CORE): $(CORE_OBJECTS)
	@mkdir -p $(@D)
	@rm -f $@
	$(call say,AR)$(AR) rcs $@ $^
$(PROGRAMS):
	@mkdir -p $(@D)
	$(call say,LINK)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# Unit and golden tests link everything but the mains.
TEST_OBJECTS := $(foreach part,router encoder-svc llm-svc cli,$(call objects,$(part)))
$(UNIT_TESTS): $(B)/%: $(B)/obj/%.o $(B)/libtf_parts.a $(CORE)
	@mkdir -p $(@D)
	$(call say,LINK)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcriterion
$(B)/libtf_parts.a: $(TEST_OBJECTS)
	@rm -f $@
	$(call say,AR)$(AR) rcs $@ $^
unit-tests: $(UNIT_TESTS) $(B)/picture_to_ppm

$(B)/obj/gen/%.o: $(B)/gen/%.c $(GEN_H)
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
$(B)/obj/%.o: %.c | $(GEN_H)
	@mkdir -p $(@D)
	$(call say,CC)$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)

$(B)/gen/proto/tokenflex.pb-c.c $(B)/gen/proto/tokenflex.pb-c.h &: proto/tokenflex.proto
	@mkdir -p $(B)/gen
	$(call say,PROTO)protoc-c --c_out=$(B)/gen $<
$(B)/gen/lua_scripts.c $(B)/gen/lua_scripts.h &: tools/embed-lua $(wildcard router/lua/*.lua)
	@mkdir -p $(B)/gen
	$(call say,LUA)tools/embed-lua $(B)/gen router/lua/*.lua
$(B)/gen/page_html.c $(B)/gen/page_html.h &: tools/embed-page cli/page.html
	@mkdir -p $(B)/gen
	$(call say,HTML)tools/embed-page $(B)/gen cli/page.html
$(B)/gen/status_html.c $(B)/gen/status_html.h &: tools/embed-status router/page.html
	@mkdir -p $(B)/gen
	$(call say,HTML)tools/embed-status $(B)/gen router/page.html

# A picture as the decoder sees it, for tools/compare_with_pillow.py.
$(B)/picture_to_ppm: $(B)/obj/tools/picture_to_ppm.o $(CORE)
	$(call say,LINK)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# Pixels as the encoder sees them, for the PyTorch reference (tools/make_goldens.py).
$(B)/dump_pixels: $(B)/obj/tools/dump_pixels.o $(call objects,encoder-svc) $(CORE)
	$(call say,LINK)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# Fuzzing of what reads strangers' bytes; clang's.
.PHONY: fuzz
fuzz: build/fuzz/fuzz_image ## build the fuzzer of the picture decoders (clang)
build/fuzz/fuzz_image: tests/fuzz/fuzz_image.c $(wildcard image/*.[ch]) common/error.c
	@mkdir -p $(@D)
	clang -std=c11 -D_GNU_SOURCE -O1 -g -fsanitize=fuzzer,address,undefined -I. -o $@ $(filter %.c,$^) \
	  $(shell pkg-config --cflags --libs libjpeg libpng libwebp libwebpdemux libheif dav1d libtiff-4) -lgif -pthread

C_FILES := $(wildcard $(addsuffix /*.[ch],$(PARTS)) bench/*.[ch] tests/*/*.[ch] tools/*.c)
# Our side of the bench links the same libraries as the programs; the peers and the driver are tools/bench/.
BENCH_OBJECTS := $(patsubst %.c,$(B)/obj/%.o,$(addprefix bench/,ours.c vision.c decoder.c hop.c))
$(B)/bench/ours: $(BENCH_OBJECTS) $(B)/libtf_parts.a $(CORE)
	@mkdir -p $(@D)
	$(call say,LINK)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(B)/bench/jobs: $(B)/obj/bench/jobs.o $(CORE)
	@mkdir -p $(@D)
	$(call say,LINK)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
# Tiers that answer at once, for what the router alone carries.
$(B)/bench/fake_worker: $(B)/obj/tests/integration/fake_worker.o $(CORE)
	@mkdir -p $(@D)
	$(call say,LINK)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(B)/bench/instructions: $(B)/obj/bench/instructions.o $(CORE)
	@mkdir -p $(@D)
	$(call say,LINK)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
bench-instructions: $(B)/bench/instructions ## count the AVX2 kernels' instructions (UPDATE=1: note them)
	@BUILD=$(B) UPDATE=$(UPDATE) bench/instructions
bench: ## measure against peers (QUICK=1: two minutes; DATA=DIR: pictures to calibrate with)
	@tools/install-packages run bench
	@$(MAKE) --no-print-directory -j$(JOBS) build model bench-programs
	@BUILD=$(B) QUICK=$(QUICK) DATA=$(DATA) bench/run $(T)
bench-programs: $(B)/bench/ours $(B)/bench/jobs $(B)/bench/fake_worker

$(B)/bench-linear: $(B)/obj/bench/linear.o $(CORE)
	$(call say,LINK)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
bench-kernels: $(B)/bench-linear ## GF/s of every matrix product, by kernel and rows
	$(B)/bench-linear $(THREADS)

format: ## format every C file
	clang-format -i $(C_FILES)
format-check: ## check that the format is clean
	clang-format --dry-run --Werror $(C_FILES)
lint: format-check $(GEN_H) ## check format and clang-tidy
	@printf '%s\n' $(wildcard $(addsuffix /*.c,$(PARTS))) | xargs -P $(JOBS) -I{} clang-tidy --quiet {} -- $(filter-out -W%,$(CFLAGS))

# The man page and the completion say what --help says.
$(B)/tokenflex.1 $(B)/tokenflex.bash &: $(B)/tokenflex tools/make_docs.py
	$(call say,DOCS)python3 tools/make_docs.py $< $(B)

BASE ?= docker.io/library/debian:12-slim
.PHONY: images
images: model ## build the container images of the four programs (podman or docker; BASE= another Debian 12, or debootstrap; TAG=)
	@tools/build-images "$(BASE)" "$(or $(TAG),$(shell sed -n 's/^\#define TF_VERSION "\(.*\)"/\1/p' common/options.h))"

PREFIX ?= /usr/local
install: build model $(B)/tokenflex.1 ## install programs, model, man page, completion under PREFIX (/usr/local)
	install -d $(addprefix $(DESTDIR)$(PREFIX)/,bin share/tokenflex/model share/man/man1 share/doc/tokenflex \
	  share/bash-completion/completions)
	install $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
	install -m 644 build/model/*.gguf $(DESTDIR)$(PREFIX)/share/tokenflex/model
	install -m 644 $(B)/tokenflex.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 $(B)/tokenflex.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/tokenflex
	install -m 644 README.md THIRD_PARTY_NOTICES.md $(DESTDIR)$(PREFIX)/share/doc/tokenflex
	install -m 644 LICENSE $(DESTDIR)$(PREFIX)/share/doc/tokenflex/copyright

.PHONY: deb
deb: ## make Debian packages of the programs and of the model, in build/deb
	rm -rf build/deb
	@$(MAKE) --no-print-directory install PREFIX=/usr DESTDIR=build/deb/root
	tools/make-deb build/deb/root $$(sed -n 's/^#define TF_VERSION "\(.*\)"/\1/p' common/options.h) build/deb

clean: ## remove what was built (the model stays)
	rm -rf build/release build/debug build/asan build/tsan build/chaos build/fuzz build/deb build/aarch64 build/aarch64-root

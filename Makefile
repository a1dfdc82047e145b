# make help
SHELL = /bin/sh
CARGO = cargo
PREFIX = /usr/local
LIBDIR = $(PREFIX)/lib
INCLUDEDIR = $(PREFIX)/include
BINDIR = $(PREFIX)/bin
DATADIR = $(PREFIX)/share
DESTDIR =
# What `make install` takes. Set it to install what is there already, without building.
BUILT =
FROM = $(or $(BUILT),target/release)
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)

all:
	$(CARGO) build --release

help:
	@echo 'make                     build the library and the tool into target/release'
	@echo 'make check               everything that CI runs'
	@echo 'make demo                what it is for, on real files, in less than two minutes'
	@echo 'make install             PREFIX=/usr/local DESTDIR= LIBDIR= INCLUDEDIR= BINDIR= DATADIR='
	@echo '                         BUILT=target/release: install what is there, build nothing (as root)'
	@echo 'make uninstall           with the same variables'
	@echo 'make bench               the benchmarks'
	@echo 'make fuzz                every fuzz target for FUZZ_SECONDS=60 (needs cargo-fuzz and a nightly toolchain)'

check:
	.ci/check

demo: all
	PATH="$$PWD/target/release:$$PATH" QBM_SOURCE="$$PWD" QBM_LIBRARY="$$PWD/target/release/libqbm.so" \
	    timeout --foreground --kill-after 10 120 examples/demo.sh

install: $(if $(BUILT),,all)
	@set -eu; from="$(FROM)"; version="$(VERSION)"; \
	install -d "$(DESTDIR)$(LIBDIR)/pkgconfig" "$(DESTDIR)$(INCLUDEDIR)" "$(DESTDIR)$(BINDIR)"; \
	install -m 755 "$$from/libqbm.so" "$(DESTDIR)$(LIBDIR)/libqbm.so.$$version"; \
	ln -sf "libqbm.so.$$version" "$(DESTDIR)$(LIBDIR)/libqbm.so.0"; \
	ln -sf libqbm.so.0 "$(DESTDIR)$(LIBDIR)/libqbm.so"; \
	install -m 644 "$$from/libqbm.a" "$(DESTDIR)$(LIBDIR)/libqbm.a"; \
	install -m 644 include/qbm.h "$(DESTDIR)$(INCLUDEDIR)/qbm.h"; \
	install -m 755 "$$from/qbm" "$(DESTDIR)$(BINDIR)/qbm"; \
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	    -e "s|@VERSION@|$$version|" qbm.pc.in > "$(DESTDIR)$(LIBDIR)/pkgconfig/qbm.pc"; \
	chmod 644 "$(DESTDIR)$(LIBDIR)/pkgconfig/qbm.pc"; \
	pages=$$(mktemp -d); trap 'rm -rf "$$pages"' EXIT; \
	: 'A tool for another machine cannot print its pages; it is installed without them.'; \
	if "$$from/qbm" generate --dir "$$pages" 2> /dev/null; then \
	    put() { install -D -m 644 -t "$(DESTDIR)$(DATADIR)/$$1" "$$2"; }; \
	    for page in "$$pages"/*.1; do put man/man1 "$$page"; done; \
	    mv "$$pages/qbm.bash" "$$pages/qbm"; \
	    put bash-completion/completions "$$pages/qbm"; \
	    put zsh/site-functions "$$pages/_qbm"; \
	    put fish/vendor_completions.d "$$pages/qbm.fish"; \
	fi

uninstall:
	rm -f "$(DESTDIR)$(LIBDIR)"/libqbm.so "$(DESTDIR)$(LIBDIR)"/libqbm.so.0 "$(DESTDIR)$(LIBDIR)"/libqbm.so.0.*
	rm -f "$(DESTDIR)$(LIBDIR)/libqbm.a" "$(DESTDIR)$(LIBDIR)/pkgconfig/qbm.pc"
	rm -f "$(DESTDIR)$(INCLUDEDIR)/qbm.h" "$(DESTDIR)$(BINDIR)/qbm"
	rm -f "$(DESTDIR)$(DATADIR)"/man/man1/qbm.1 "$(DESTDIR)$(DATADIR)"/man/man1/qbm-*.1
	rm -f "$(DESTDIR)$(DATADIR)/bash-completion/completions/qbm" "$(DESTDIR)$(DATADIR)/zsh/site-functions/_qbm"
	rm -f "$(DESTDIR)$(DATADIR)/fish/vendor_completions.d/qbm.fish"

bench:
	$(CARGO) bench

FUZZ_SECONDS = 60
fuzz:
	set -eu; for target in $$($(CARGO) +nightly fuzz list); do \
	    $(CARGO) +nightly fuzz run "$$target" -- -max_total_time=$(FUZZ_SECONDS); \
	done

.PHONY: all help check demo install uninstall bench fuzz

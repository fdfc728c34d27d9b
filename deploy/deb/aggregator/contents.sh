# For build.sh: what is in the coordinator's package beside the libraries of requirements.lock.
doc=hemofed-aggregator modules="aggregator proto/federation"
programs="hemofed-aggregator:aggregator.cli hemofed-custodian:aggregator.custodian.cli"
starts="aggregator.serve, aggregator.migrations, aggregator.custodian.cli, psycopg"
settings=aggregator.toml pages="OPERATIONS.md SECURITY.md PRIVACY.md"

strip_own() { :; }

lay_out_own() {
  install -D -m 644 "$root/deploy/plan.toml" "$tree/usr/share/doc/hemofed-aggregator/examples/plan.toml"
}

# For build.sh: what is in the hospital's package beside the libraries of requirements.lock.
doc=hemofed modules="site_client proto/federation"
programs="hemofed-site:site_client.cli"
starts="site_client.agent.service, site_client.trainer.job, site_client.ingest.catalog.catalog, site_client.receiver.service"
settings="site.toml receiver.toml" pages="HOSPITAL.md SECURITY.md SECURITY_QUESTIONNAIRE.md"

strip_own() {
  rm -rf "$packages"/torch/{share,test}
  find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete # without that one, torch cannot be imported
}

lay_out_own() {
  install -D -m 644 -t "$tree/lib/systemd/system" "$root/deploy/systemd/hemofed.slice"
  install -D -m 644 "$root/deploy/systemd/gpu.conf" "$tree/usr/share/doc/hemofed/examples/gpu.conf"
  install -D -m 644 "$root/deploy/systemd/snp.conf" "$tree/usr/share/doc/hemofed/examples/snp.conf"
}

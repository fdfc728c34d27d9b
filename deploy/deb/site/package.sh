# The facts of the hospital's package, for build.sh and the scripts.
package=hemofed-site program=hemofed-site rollback=hemofed-rollback home=/opt/hemofed
units="hemofed-agent.service hemofed-trainer.service hemofed-receiver.service" # the agent first: others wait for it
accounts="hemofed-agent hemofed-trainer hemofed-receiver"
groups="hemofed hemofed-receiver hemofed-export"
theirs="the export" # what a later account with one of their numbers might read

# The facts of the coordinator's package, for build.sh and the scripts.
package=hemofed-aggregator program=hemofed-aggregator rollback=hemofed-aggregator-rollback home=/opt/hemofed-aggregator
units=hemofed-aggregator.service
accounts=hemofed-aggregator
groups=hemofed-aggregator
theirs="a backup of the keys" # what a later account with one of their numbers might read

# Recipe of localhost/plexus-ee:scm: the EE image with the programs that fetch from Subversion and check signatures of content.
# Sourced by ../setup.sh after image.sh. The same recipe with more packages, so that no build reaches the network by itself.
# shellcheck shell=bash

SCM_IMAGE=localhost/plexus-ee:scm
SCM_PACKAGES=subversion,gpg

# $1 = directory, $2 = requirements, $3 = label.
scm_build() {
    local EE_PACKAGES=$EE_PACKAGES,$SCM_PACKAGES
    ee_wheels "$1/wheels" "$2" && ee_tar "$1" "$2" && ee_import "$1/ee.tar" "$SCM_IMAGE" "$3"
}

#!/usr/bin/env bash
# Installs a real Apptainer into a folder of its own, without root: Debian sid's packages and the C library they need.
# Usage: tests/life/apptainer.sh FOLDER; then FOLDER/bin/apptainer. Doing it twice is fine.
set -euo pipefail
umask 022
folder=$(realpath -m -- "${1:?Usage: apptainer.sh FOLDER}")
die() { echo "$*" >&2; exit 1; }
[[ $(uname -m) == x86_64 ]] || die "only packages for x86_64 are known here"
for tool in apt-get dpkg-deb unshare; do command -v "$tool" >/dev/null || die "$tool is not installed"; done
unshare --user --map-root-user true 2>/dev/null || die "this user may make no user namespaces"

mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9
if [[ -x $folder/bin/apptainer ]]; then exit 0; fi
work=$(mktemp -d -- "$folder/.install-XXXXXX")
trap 'rm -rf -- "$work"' EXIT
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,debs,root}
touch "$work/state/status"
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$key] http://deb.debian.org/debian sid main" >"$work/sources.list"
export APT_CONFIG=$work/apt.conf
cat >"$APT_CONFIG" <<END
Dir::State "$work/state";
Dir::State::status "$work/state/status";
Dir::Cache "$work/cache";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Architecture "amd64";
APT::Sandbox::User "";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Languages "none";
Acquire::Retries "1";
END
apt-get -qq update || die "Debian's sid cannot be reached"
(cd "$work/debs" && apt-get -qq download apptainer libc6 libseccomp2 libsqlite3-0 squashfs-tools squashfuse \
  libsquashfuse0 libfuse3-4 liblz4-1 liblzma5 liblzo2-2 libzstd1 zlib1g libxxhash0 libgcc-s1 libstdc++6 patchelf)
for package in "$work"/debs/*.deb; do dpkg-deb -x "$package" "$work/root"; done

# Apptainer finds its configuration and session folder beside itself.
mv "$work/root/etc" "$work/root/var" "$work/root/usr/"
usr=$folder/usr lib=$folder/usr/lib/x86_64-linux-gnu
rm -rf -- "$usr"
mv "$work/root/usr" "$usr"
ln -s ../var ../etc "$usr/lib/"
# Where this user has not every capability, as root in a container, it must not ask for them.
sed -i 's/^root default capabilities = full/root default capabilities = no/' "$usr/etc/apptainer/apptainer.conf"
for program in "$usr"/bin/{apptainer,mksquashfs,unsquashfs,squashfuse,squashfuse_ll} "$lib/apptainer/bin/starter"; do
  "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$usr/bin/patchelf" --force-rpath \
    --set-interpreter "$lib/ld-linux-x86-64.so.2" --set-rpath "$lib" "$program"
done
mkdir -p "$folder/bin"
# A namespace of its own lets %post run as its root, whoever the user is.
cat >"$work/apptainer" <<END
#!/bin/sh
export PATH="$usr/bin:\$PATH"
if [ "\$1" = build ]; then exec unshare --user --map-root-user "$usr/bin/apptainer" "\$@"; fi
exec "$usr/bin/apptainer" "\$@"
END
chmod 755 "$work/apptainer"
mv "$work/apptainer" "$folder/bin/apptainer"

//! scripts/tpu-vm, without gcloud: what it would run.

use std::{fs, path::Path, process::Command};

use crate::Ran;

fn tpu_vm(args: &[&str]) -> Ran {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/tpu-vm/tpu-vm");
    let output =
        Command::new(script).args(args).env_remove("ZONE").env_remove("PROJECT").env("HF_TOKEN", "secret").output();
    Ran::of(output.unwrap())
}

fn dry(args: &[&str]) -> String {
    tpu_vm(&[&["--dry-run"], args].concat()).ok().stdout
}

#[test]
fn each_command_is_one_of_gcloud() {
    assert_eq!(
        dry(&["create", "vm1", "4", "--spot"]).trim_end(),
        "gcloud compute tpus tpu-vm create vm1 --zone=us-west4-a --accelerator-type=v5litepod-4 \
         --version=v2-alpha-tpuv5-lite --spot"
    );
    let setup = dry(&["setup", "vm1"]);
    for words in ["scp", "target/release/gemma-pjrt vm1:gemma-pjrt", "plugins\\ install\\ tpu", "doctor"] {
        assert!(setup.contains(words), "{words:?} is not in:\n{setup}");
    }
    let copied = dry(&["weights", "vm1", "gs://bucket/gemma/"]);
    assert!(copied.contains("gcloud\\ storage\\ cp\\ --recursive\\ gs://bucket/gemma\\ models/"), "{copied}");
    let downloaded = dry(&["weights", "vm1", "google/gemma-1.1-2b-it"]);
    assert!(downloaded.contains("google/gemma-1.1-2b-it") && !downloaded.contains("secret"), "{downloaded}");
    assert!(dry(&["delete", "vm1"]).contains("tpu-vm delete vm1 --zone=us-west4-a --quiet"));
    for (args, words) in [
        (&["create", "vm1", "3"][..], "1, 4 or 8 chips"),
        (&["create", "VM 1", "4"], "no name for a VM"),
        (&["create"], "usage:"),
        (&["fly", "vm1"], "usage:"),
    ] {
        tpu_vm(args).fails(2, &[words]);
    }
}

/// The last argument is a command for the VM's shell: it is run here, with a stand-in for the
/// program and for sudo.
#[test]
fn arguments_arrive_as_they_were() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = home.path().join(name);
        fs::write(&path, text).unwrap();
        assert!(Command::new("chmod").arg("+x").arg(&path).status().unwrap().success());
    };
    file("gemma-pjrt", "#!/bin/sh\nprintf '<%s>' \"$@\"\n");
    file("sudo", "#!/bin/sh\nif [ \"$1\" = tee ]; then cat > \"$HOME/unit\"; fi\n");
    let in_shell = |line: &str| {
        let path = format!("{}:/usr/bin:/bin", home.path().display());
        let mut command = Command::new("bash");
        command.args(["-c", line]).current_dir(home.path()).env("HOME", home.path()).env("PATH", path);
        Ran::of(command.output().unwrap()).ok().stdout
    };
    let remote = |printed: &str| in_shell(&format!("args=({printed}); printf %s \"${{args[-1]#--command=}}\""));
    let arguments = ["generate", "it's $HOME; `ls`", "--mesh", "1x4"];
    let wanted = "<generate><it's $HOME; `ls`><--mesh><1x4>";

    let run = dry(&[&["run", "vm1"], &arguments[..]].concat());
    assert_eq!(in_shell(&remote(&run)), wanted);
    let service = dry(&[&["service", "vm1"], &arguments[..]].concat());
    in_shell(&remote(&service));
    assert_eq!(in_shell("./gemma-pjrt.sh"), wanted);
    let unit = fs::read_to_string(home.path().join("unit")).unwrap();
    let script = format!("ExecStart={}/gemma-pjrt.sh\n", home.path().display());
    assert!(unit.contains(&script) && unit.contains("LimitMEMLOCK=infinity"), "{unit}");
}

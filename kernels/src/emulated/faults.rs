//! Every fault of `kernels/emu/faults.txt` is put into its kernel, compiled and must be found by the cases.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

use super::{Emulator, Mode, built};
use crate::check::suites;

/// One entry of the list.
struct Fault {
    file: String,
    what: String,
    find: String,
    /// Which occurrence; `None`: the only one.
    place: Option<usize>,
    replace: String,
    survives: bool,
}

impl Fault {
    /// The kernel in which it shows: that of the file's name, or the one said.
    fn kernel(&self) -> &str {
        let shown = self.file.split_once(" in ").map_or(&*self.file, |(_, kernel)| kernel);
        shown.strip_suffix(".cuh").unwrap_or(shown)
    }

    /// The file that it is in.
    fn source(&self) -> String {
        let file = self.file.split_once(" in ").map_or(&*self.file, |(file, _)| file);
        if file.ends_with(".cuh") { file.into() } else { format!("{file}.cu") }
    }
}

fn parse(text: &str) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if let Some(title) = line.strip_prefix("== ") {
            let (file, what) = title.split_once(": ").expect("a title is FILE: what");
            faults.push(Fault {
                file: file.into(),
                what: what.into(),
                find: String::new(),
                place: None,
                replace: String::new(),
                survives: false,
            });
            continue;
        }
        let fault = faults.last_mut().expect("a title comes first");
        let add = |text: &mut String, line: &str| {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(line);
        };
        if line.starts_with("survives") {
            fault.survives = true;
        } else if let Some(rest) = line.strip_prefix('-') {
            let numbered = rest.strip_prefix('@').and_then(|rest| rest.split_once(' '));
            if let Some((place, _)) = numbered {
                fault.place = Some(place.parse().expect("a number after @"));
            }
            add(&mut fault.find, numbered.map_or(rest, |(_, rest)| rest));
        } else if let Some(rest) = line.strip_prefix('+') {
            add(&mut fault.replace, rest);
        } else {
            panic!("{}: {line:?} is neither text to find nor to put", fault.what);
        }
    }
    faults
}

fn patched(fault: &Fault, source: &str) -> String {
    let places: Vec<usize> = source.match_indices(&fault.find).map(|(at, _)| at).collect();
    let at = match fault.place {
        Some(place) => places.get(place - 1).copied(),
        None if places.len() == 1 => Some(places[0]),
        None => None,
    };
    let at = at.unwrap_or_else(|| {
        panic!("{}: {}: {:?} is in {} places", fault.file, fault.what, fault.find, places.len())
    });
    format!("{}{}{}", &source[..at], fault.replace, &source[at + fault.find.len()..])
}

/// The patched kernel as a library of its own.
fn compile(mode: Mode, kernel: &str, folder: &std::path::Path) -> PathBuf {
    let build = mode.build();
    let read = |name: String| fs::read_to_string(built().join(name)).expect("the build script wrote it");
    let from = folder.join(format!("{kernel}.cu"));
    let object = folder.join(format!("{kernel}_{build}.o"));
    let library = folder.join(format!("{kernel}_{build}.so"));
    let command = read(format!("{build}.command"));
    let mut words = command.lines();
    let compiler = words.next().expect("a compiler");
    let run = |command: &mut Command| {
        let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("the compiler starts");
        assert!(output.status.success(), "{kernel}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new(compiler).args(words).arg("-w").arg("-c").arg(&from).arg("-o").arg(&object));
    let runtime = read(format!("{build}.runtime"));
    run(Command::new(compiler).args(["-shared", "-o"]).arg(&library).arg(&object).args(runtime.lines()));
    library
}

/// What found the fault.
fn found_by(fault: &Fault, scratch: &std::path::Path, number: usize) -> Option<String> {
    let kernel = fault.kernel();
    // The kernel with all headers: what is included comes from beside it.
    let folder = scratch.join(number.to_string());
    fs::create_dir_all(&folder).expect("a scratch folder");
    let cuda = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let own = format!("{kernel}.cu");
    for entry in fs::read_dir(cuda).expect("the kernels are there") {
        let entry = entry.expect("the kernels are there");
        let name = entry.file_name().into_string().expect("a name in ASCII");
        if name.ends_with(".cuh") || name == own {
            let source = fs::read_to_string(entry.path()).expect("the kernel is there");
            let source = if name == fault.source() { patched(fault, &source) } else { source };
            fs::write(folder.join(name), source).expect("writes");
        }
    }
    let suite = suites().into_iter().find(|suite| suite.file == kernel).expect("the kernel has cases");
    [Mode::Checked, Mode::Plain, Mode::Reversed].into_iter().find_map(|mode| {
        let library = compile(mode, kernel, &folder);
        let mut device = Emulator::open(&library, mode).expect("loads");
        let error = (suite.run)(&mut device, true).err()?;
        Some(format!("{mode:?}: {error}"))
    })
}

#[test]
fn every_seeded_fault_is_found() {
    let mut faults = parse(include_str!("../../emu/faults.txt"));
    assert!(suites().iter().all(|suite| faults.iter().any(|fault| fault.kernel() == suite.file)));
    // For work on one kernel.
    if let Ok(only) = std::env::var("TARN_FAULTS_OF") {
        faults.retain(|fault| fault.kernel() == only);
    }
    let scratch = std::env::temp_dir().join(format!("tarn-faults-{}", std::process::id()));
    fs::create_dir_all(&scratch).expect("a scratch folder");
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(fault) = faults.get(number) else { break };
                    let found = found_by(fault, &scratch, number);
                    println!("{}: {}: {}", fault.file, fault.what, found.as_deref().unwrap_or("SURVIVES"));
                    if found.is_some() == fault.survives {
                        wrong.lock().expect("no panic").push(format!("{}: {}", fault.file, fault.what));
                    }
                }
            });
        }
    });
    fs::remove_dir_all(&scratch).expect("removes its scratch folder");
    let wrong = wrong.into_inner().expect("no panic");
    assert!(wrong.is_empty(), "{} of {} faults are not as listed: {wrong:#?}", wrong.len(), faults.len());
}

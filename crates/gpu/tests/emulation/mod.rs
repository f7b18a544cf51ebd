//! The emulated device: `main.cpp` with the kernels in it, compiled once and asked over pipes.

use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::io::{BufReader, BufWriter, Read, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use fedprune_gpu::device::{Argument, Device, Launch, Limits};
use fedprune_gpu::{Engine, GpuError, OwnedWeights};

/// How the kernels are compiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watched {
    /// For speed.
    No,
    /// Reads and writes past an end, misaligned ones, and arithmetic that C++ does not define, end the program.
    Memory,
    /// Threads that touch the same memory without a barrier between them end the program.
    Races,
}

/// In which order threads and blocks run.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    Forward,
    Reverse,
    Seeded(u64),
}

struct Pipes {
    child: Child,
    to: BufWriter<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Drop for Pipes {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A device that is no GPU.
pub struct Emulator {
    pipes: Rc<RefCell<Pipes>>,
    limits: Limits,
    launches: RefCell<Vec<String>>,
}

/// Weights from `offset` bytes on.
pub fn view_of<'a>(weights: &'a OwnedWeights<Emulator>, engine: &Engine<Emulator>, offset: usize) -> View<'a> {
    weights.view(engine.device()).from(offset as u64)
}

/// Memory of the other program, by its name there.
pub struct Memory {
    pipes: Rc<RefCell<Pipes>>,
    name: u64,
    bytes: u64,
}

/// Part of it.
pub struct View<'a> {
    name: u64,
    offset: u64,
    bytes: u64,
    lent: PhantomData<&'a Memory>,
}

impl View<'_> {
    /// From `offset` bytes on.
    pub fn from(mut self, offset: u64) -> Self {
        self.offset += offset;
        self.bytes -= offset;
        self
    }
}

impl Pipes {
    fn say(&mut self, words: &[u64]) {
        for word in words {
            self.to.write_all(&word.to_ne_bytes()).unwrap_or_else(|_| self.died());
        }
    }

    fn hear(&mut self, bytes: &mut [u8]) {
        self.to.flush().unwrap_or_else(|_| self.died());
        self.from.read_exact(bytes).unwrap_or_else(|_| self.died());
    }

    fn hear_word(&mut self) -> u64 {
        let mut word = [0; 8];
        self.hear(&mut word);
        u64::from_ne_bytes(word)
    }

    fn died(&mut self) -> ! {
        let status = self.child.wait();
        panic!("the emulated device ended: {status:?}; what it says is on standard error");
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.pipes.borrow_mut().say(&[1, self.name]);
        }
    }
}

impl Emulator {
    /// A fresh one. `None`, with a word on why, where no compiler is there or it has no such sanitizer.
    pub fn new(watched: Watched, order: Order) -> Option<Self> {
        let program = program(watched)?;
        let mut command = match watched {
            // its shadow memory lies where a randomised layout may be
            Watched::Races if Command::new("setarch").args(["-R", "true"]).status().is_ok_and(|is| is.success()) => {
                let mut command = Command::new("setarch");
                command.arg("-R").arg(&program);
                command
            }
            _ => Command::new(&program),
        };
        // a report ends the program, by a code of its own
        command.env("TSAN_OPTIONS", "halt_on_error=1 exitcode=66").env("ASAN_OPTIONS", "detect_leaks=0 exitcode=67");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("what was compiled runs");
        let to = BufWriter::new(child.stdin.take().expect("piped"));
        let from = BufReader::new(child.stdout.take().expect("piped"));
        let pipes = Rc::new(RefCell::new(Pipes { child, to, from }));
        let emulator =
            Self { pipes, limits: Limits { processors: 3, shared_bytes: 64 << 10 }, launches: RefCell::default() };
        emulator.set_order(order);
        Some(emulator)
    }

    /// The kernels that were launched, in order.
    pub fn launches(&self) -> Vec<String> {
        self.launches.borrow().clone()
    }

    /// From now on.
    pub fn set_order(&self, order: Order) {
        let (which, seed) = match order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Seeded(seed) => (2, seed),
        };
        self.pipes.borrow_mut().say(&[5, which, seed]);
    }
}

/// Where a variant lies, if it could be compiled.
type Compiled = (Watched, Option<PathBuf>);

/// Compiles the kernels, once a process; all variants lie beside what cargo builds for tests.
fn program(watched: Watched) -> Option<PathBuf> {
    static PROGRAMS: Mutex<Vec<Compiled>> = Mutex::new(Vec::new());
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, program)) = programs.iter().find(|(other, _)| *other == watched) {
        return program.clone();
    }
    let program = compile(watched);
    programs.push((watched, program.clone()));
    program
}

fn compile(watched: Watched) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut command = Command::new(&compiler);
    // no fused products, as on the device: every operation rounds once
    command.args(["-std=c++17", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function"]);
    command.args(match watched {
        Watched::No => &["-O2"] as &[&str],
        Watched::Memory => &["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        Watched::Races => &["-O1", "-g1", "-fsanitize=thread"],
    });
    command.arg("-I").arg(root.join("kernels")).arg("-I").arg(root.join("tests/emulation"));
    command.arg(root.join("tests/emulation/main.cpp"));
    // compiled again only where the command or a source is another
    let mut hasher = std::hash::DefaultHasher::new();
    format!("{command:?}").hash(&mut hasher);
    for folder in ["kernels", "tests/emulation"] {
        let entries = std::fs::read_dir(root.join(folder)).expect("the sources");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        paths.iter().for_each(|path| std::fs::read(path).expect("a source").hash(&mut hasher));
    }
    let program = folder.join(format!("kernels-{watched:?}-{:016x}", hasher.finish()));
    if program.exists() {
        return Some(program);
    }
    let unfinished = program.with_extension(std::process::id().to_string());
    command.arg("-o").arg(&unfinished);
    match command.output() {
        Ok(output) if output.status.success() => {
            std::fs::rename(&unfinished, &program).expect("renamed in its folder");
            Some(program)
        }
        // a sanitizer may be missing; the compiler itself is not, since the zstd below needs one too
        Ok(output) if watched != Watched::No && String::from_utf8_lossy(&output.stderr).contains("cannot find") => None,
        Ok(output) => panic!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            panic!("the kernels are tested with a C++ compiler, and {compiler:?} does not run: {error}; set CXX")
        }
    }
}

impl Device for Emulator {
    type Memory = Memory;
    type View<'a> = View<'a>;
    type ViewMut<'a> = View<'a>;

    fn allocate(&self, _: &'static str, bytes: u64) -> Result<Memory, GpuError> {
        let mut pipes = self.pipes.borrow_mut();
        pipes.say(&[0, bytes]);
        let name = pipes.hear_word();
        Ok(Memory { pipes: self.pipes.clone(), name, bytes })
    }

    fn length(&self, memory: &Memory) -> u64 {
        memory.bytes
    }

    fn clear(&self, memory: &mut Memory) -> Result<(), GpuError> {
        self.pipes.borrow_mut().say(&[2, memory.name]);
        Ok(())
    }

    fn upload(&self, memory: &mut Memory, bytes: &[u8]) -> Result<(), GpuError> {
        assert!(bytes.len() as u64 <= memory.bytes);
        let mut pipes = self.pipes.borrow_mut();
        pipes.say(&[3, memory.name, 0, bytes.len() as u64]);
        pipes.to.write_all(bytes).unwrap_or_else(|_| pipes.died());
        Ok(())
    }

    fn download(&self, memory: &Memory, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.download_view(&self.view(memory, memory.bytes), 0, bytes)
    }

    fn download_view(&self, view: &View<'_>, offset: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        assert!(offset + bytes.len() as u64 <= view.bytes);
        let mut pipes = self.pipes.borrow_mut();
        pipes.say(&[4, view.name, view.offset + offset, bytes.len() as u64]);
        pipes.hear(bytes);
        Ok(())
    }

    fn view<'a>(&self, memory: &'a Memory, bytes: u64) -> View<'a> {
        assert!(bytes <= memory.bytes);
        View { name: memory.name, offset: 0, bytes, lent: PhantomData }
    }

    fn view_length(&self, view: &View<'_>) -> u64 {
        view.bytes
    }

    fn view_mut<'a>(&self, memory: &'a mut Memory, bytes: u64) -> View<'a> {
        self.view(memory, bytes)
    }

    fn view_mut_length(&self, view: &View<'_>) -> u64 {
        view.bytes
    }

    fn free_bytes(&self) -> Result<u64, GpuError> {
        Ok(1 << 30)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    unsafe fn launch(&self, launch: Launch<'_, '_, '_, Self>) -> Result<(), GpuError> {
        self.launches.borrow_mut().push(launch.kernel.to_owned());
        let mut pipes = self.pipes.borrow_mut();
        pipes.say(&[6, launch.kernel.len() as u64]);
        pipes.to.write_all(launch.kernel.as_bytes()).unwrap_or_else(|_| pipes.died());
        pipes.say(&[u64::from(launch.blocks), u64::from(launch.threads), u64::from(launch.shared_bytes)]);
        pipes.say(&[launch.arguments.len() as u64]);
        for argument in launch.arguments.iter() {
            let (name, value) = match argument {
                Argument::Read(memory) => (memory.name, 0),
                Argument::Write(memory) => (memory.name, 0),
                Argument::View(view) => (view.name, view.offset),
                Argument::ViewMut(view) => (view.name, view.offset),
                Argument::U32(number) => (0, u64::from(*number)),
                Argument::U64(number) => (0, *number),
            };
            pipes.say(&[name, value]);
        }
        assert_eq!(pipes.hear_word(), 1, "the launch is done");
        Ok(())
    }
}

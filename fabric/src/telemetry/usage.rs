//! What this process uses of its machine, read at each export of metrics. The names are those of OpenTelemetry's conventions for
//! processes.

use opentelemetry::{KeyValue, metrics::Meter};

/// Makes the instruments.
pub(super) fn observe(meter: &Meter) {
    let _observed = meter
        .i64_observable_up_down_counter("process.memory.usage")
        .with_unit("By")
        .with_description("Resident memory of the process.")
        .with_callback(|observer| {
            if let Some(bytes) = resident() {
                observer.observe(bytes, &[]);
            }
        })
        .build();
    let modes = ["user", "system"].map(|mode| KeyValue::new("cpu.mode", mode));
    let _observed = meter
        .f64_observable_counter("process.cpu.time")
        .with_unit("s")
        .with_description("Processor time of the process.")
        .with_callback(move |observer| {
            for (seconds, mode) in cpu_seconds().into_iter().flatten().zip(&modes) {
                observer.observe(seconds, std::slice::from_ref(mode));
            }
        })
        .build();
}

/// Resident bytes. `None` where `/proc` has no such line.
fn resident() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kib.trim().strip_suffix(" kB")?.parse::<i64>().ok()?.checked_mul(1024)
}

/// Seconds in the program and in the kernel for it.
fn cpu_seconds() -> Option<[f64; 2]> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a whole `rusage`, and zeroes are one, so it is valid also if the call fails
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init()
    };
    Some([usage.ru_utime, usage.ru_stime].map(|time| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_has_used_a_processor() {
        assert!(resident().unwrap() > 1 << 20);
        assert!(cpu_seconds().unwrap().iter().sum::<f64>() > 0.0);
    }
}

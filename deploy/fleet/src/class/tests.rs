use proptest::prelude::*;

use super::*;

fn need(declares: &Value) -> Need {
    let number = |key: &str| declares.get(key).and_then(Value::as_f64);
    Need {
        cpu: number("cpu").unwrap(),
        memory: (number("memory_gb").unwrap() * GIB) as u64,
        gpu: number("gpu").unwrap_or(0.0) as u32,
        arch: declares.get("arch").map_or(Arch::X86, |arch| serde_json::from_value(arch.clone()).unwrap()),
        spot: declares.get("spot").and_then(Value::as_bool).unwrap_or(false),
    }
}

#[test]
fn the_cases_of_the_file_come_out_as_it_says() {
    let cases = classes()._sizing_cases.as_array().unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let size = size(&need(&case["declares"])).unwrap();
        let gives = &case["gives"];
        assert_eq!(size.provider.word(), gives["provider"].as_str().unwrap(), "{case}");
        assert_eq!(f64::from(size.cpu) / CPU_UNITS, gives["cpu"].as_f64().unwrap(), "{case}");
        assert_eq!(f64::from(size.memory) / 1024.0, gives["memory_gb"].as_f64().unwrap(), "{case}");
    }
}

#[test]
fn nothing_with_a_server_may_run_on_spot() {
    for (name, class) in &classes().classes {
        assert!(!(class.spot && class.port.is_some()), "{name}");
    }
    assert!(!classes().class("head").spot && !classes().class("shard").spot);
}

#[test]
fn what_no_instance_has_is_refused() {
    let need = Need { cpu: 500.0, memory: 1 << 30, gpu: 0, arch: Arch::X86, spot: false };
    assert!(size(&need).unwrap_err().contains("500 vCPUs"));
}

proptest! {
    /// The oracle tries every pair that Fargate has.
    #[test]
    fn a_size_holds_what_is_needed_and_no_smaller_one_does(
        cpu in 0.01..20.0_f64, gib in 0.01..140.0_f64, gpu in 0_u32..3, arm: bool, spot: bool,
    ) {
        let arch = if arm { Arch::Arm } else { Arch::X86 };
        let need = Need { cpu, memory: (gib * GIB) as u64, gpu, arch, spot };
        let gib = need.memory as f64 / GIB;
        let got = size(&need).unwrap();
        prop_assert!(f64::from(got.cpu) / CPU_UNITS >= cpu && f64::from(got.memory) / 1024.0 >= gib);
        prop_assert_eq!(got.provider.is_managed(), gpu > 0 || cpu > 16.0 || gib > 120.0);
        prop_assert_eq!(got.provider == Provider::Gpu, gpu > 0);
        prop_assert_eq!(got.provider == Provider::FargateSpot, spot && !got.provider.is_managed());
        prop_assert!(got.provider != Provider::Memory || arm);
        if !got.provider.is_managed() {
            for row in &classes().sizing.fargate {
                for gb in &row.memory_gb {
                    let (row_cpu, row_memory) = ((row.cpu * CPU_UNITS) as u32, (gb * 1024.0) as u32);
                    let holds = row.cpu >= cpu && *gb >= gib;
                    prop_assert!(!holds || (row_cpu, row_memory) >= (got.cpu, got.memory));
                }
            }
        }
    }
}

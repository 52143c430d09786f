//! One small kernel on each runtime: the build links, a kernel compiles, and its results come back.

use cubecl::Device;
use cubecl::prelude::*;

/// `out[i] = a[i] + b[i]`, in vectors of `W`; each unit takes a contiguous range.
#[cube(launch)]
fn add<W: Size>(a: &[Vector<f32, W>], b: &[Vector<f32, W>], out: &mut [Vector<f32, W>], n: usize) {
    let units = CUBE_DIM as usize * CUBE_COUNT;
    for i in n * ABSOLUTE_POS / units..n * (ABSOLUTE_POS + 1) / units {
        out[i] = a[i] + b[i];
    }
}

/// Adds two vectors of `elements` numbers on the device and compares with the host's sums, which are exact here.
#[allow(unsafe_code, reason = "a launch states the buffers' lengths, and they are the lengths allocated here")]
fn check(device: &Device, width: usize, elements: usize) {
    let client = device.client();
    let a: Vec<f32> = (0..elements).map(|i| i as f32).collect();
    let b: Vec<f32> = (0..elements).map(|i| 0.5 * i as f32).collect();
    let out = client.empty(elements * size_of::<f32>());
    let vectors = elements / width;
    let input = |values: &[f32]| {
        let handle = client.create_from_slice(f32::as_bytes(values));
        unsafe { BufferArg::from_raw_parts(handle, vectors) }
    };
    add::launch(
        &client,
        CubeCount::Static(1, 1, 1),
        CubeDim::new_1d(2),
        width,
        input(&a),
        input(&b),
        unsafe { BufferArg::from_raw_parts(out.clone(), vectors) },
        vectors,
    );
    let bytes = client.read_one(out).unwrap();
    let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(f32::from_bytes(&bytes), expected);
}

#[cfg(feature = "cpu")]
#[test]
fn cpu_adds() {
    let device = Device::cpu().unwrap();
    for (width, elements) in [(1, 33), (8, 136), (16, 48)] {
        check(&device, width, elements);
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn wgpu_adds() {
    match crate::open_wgpu() {
        Ok(device) => {
            for (width, elements) in [(1, 33), (4, 68)] {
                check(&device, width, elements);
            }
        }
        Err(why) if std::env::var_os("MOEC_REQUIRE_WGPU").is_some_and(|value| value == "1") => panic!("{why}"),
        Err(_) => println!("skipped: no wgpu device"),
    }
}

//! Names of kernels: two launches of one name are of one compiled kernel, so whatever is compiled in is part of the name.

use std::collections::HashMap;

use moec_ir::{AttentionAttrs, Binary, Precision, Unary};
use moec_plan::{Access, Elementwise, Instr, Small, Statement};

use super::{Arg, Bf16Products, DeviceProfile, Launcher, SCRATCH_ELEMENTS};
use crate::kernels::matmul::{self, Layout, Product};
use crate::kernels::norm::{self, Norm};
use crate::kernels::{attention, copy, embed, fused, reduce, rotary, routing, small};
use crate::machine::{Launches, is_compiled_as_written, objects_for, recorded_kernels};

/// A buffer of that many elements; what is in it does not matter to a launch.
fn buffer(elements: usize) -> Arg {
    Arg::new(0, 0, elements)
}

/// A program over `[rows, columns]` that reads two matrices, and what follows from results alone: the sum, its exponential,
/// or several of them in any order.
fn program(rows: usize, columns: usize, second: Access, results: &[usize]) -> Elementwise {
    Elementwise {
        elements: rows * columns,
        accesses: vec![Access::Full, second],
        instructions: vec![
            Instr::Load(0),
            Instr::Load(1),
            Instr::Binary(Binary::Add, 0, 1),
            Instr::Unary(Unary::Exp, 2),
            Instr::Dropout { value: 3, rate: 0.5.into(), key: 1 },
        ],
        results: results.to_vec(),
    }
}

/// The sum over the rows, and its exponential, of which one or both are results.
fn few_numbers(columns: usize, results: &[usize]) -> Small {
    let exp = Elementwise::one(columns, vec![Access::Full], Some(Instr::Unary(Unary::Exp, 0)));
    let sum = Statement::Sum { operand: 0, terms: ROWS, elements: columns };
    let statements = vec![sum, Statement::Program { program: exp, operands: vec![1] }];
    Small { operands: 1, statements, results: results.to_vec() }
}

const ROWS: usize = 12;

/// Launches that differ in a single respect from one to another.
fn launches() -> Vec<Launches> {
    let mut all: Vec<Launches> = Vec::new();
    for columns in [7, 16, 32] {
        let whole = ROWS * columns;
        for (access, elements) in
            [(Access::Full, whole), (Access::Repeat, columns), (Access::Stretch { inner: columns }, ROWS)]
        {
            for results in [&[2][..], &[3], &[4], &[2, 3], &[3, 2], &[2, 3, 4]] {
                let program = program(ROWS, columns, access, results);
                let (x, second, more) = (buffer(whole), buffer(elements), vec![buffer(whole); results.len() - 1]);
                let rng = Some(buffer(4));
                let alone = (program.clone(), [x].into_iter().chain(more.clone()).collect::<Vec<_>>());
                all.push(Box::new(move |l| fused::launch(l, &alone.0, &[x, second], rng, &alone.1)));
                // The same after each kind of kernel that goes on with a program.
                type With = Box<dyn Fn(&Launcher, Option<fused::After<'_>>) + Send + Sync>;
                let rows = buffer(ROWS);
                let norm = Norm { x, gain: buffer(columns), mean: None, rstd: rows, channels: columns };
                let producers: [With; 4] = [
                    Box::new(move |l, after| embed::embed(l, rows, x, x, after, ROWS, ROWS, columns)),
                    Box::new(move |l, after| norm::grad(l, norm, x, x, buffer(columns), None, after)),
                    Box::new(move |l, after| routing::combine(l, x, rows, None, x, after, columns)),
                    Box::new(move |l, after| product(l, x, buffer(columns * columns), columns, after)),
                ];
                for producer in producers {
                    let (program, more) = (program.clone(), more.clone());
                    all.push(Box::new(move |l| {
                        producer(l, Some(fused::After { program: &program, floats: &[second], rng, more: &more }));
                    }));
                }
            }
        }
        let (x, row) = (buffer(whole), buffer(columns));
        for results in [&[1, 2][..], &[2], &[1]] {
            let (statements, results) = (few_numbers(columns, results), vec![row; results.len()]);
            all.push(Box::new(move |l| small::launch(l, &statements, &[x], &results)));
        }
        all.push(Box::new(move |l| reduce::sum(l, x, row, &[ROWS, columns], &[0])));
        all.push(Box::new(move |l| reduce::sum(l, x, buffer(ROWS), &[ROWS, columns], &[1])));
        all.push(Box::new(move |l| reduce::sum_of_squares(l, &[x, row], buffer(1))));
        all.push(Box::new(move |l| copy::permute(l, x, x, &[ROWS, columns], &[1, 0])));
        for positions in [None, Some(buffer(ROWS))] {
            let qkv = buffer(ROWS * 3 * 32);
            all.push(Box::new(move |l| rotary::launch(l, qkv, positions, qkv, 32 / 8, 4, 1e4, false, 32)));
        }
        for (rng, dropout) in [(None, 0.0), (Some(buffer(4)), 0.5)] {
            let attrs = AttentionAttrs { dropout: dropout.into(), ..AttentionAttrs::causal(1, ROWS / 2, 0.5) };
            let qkv = buffer(3 * whole);
            all.push(Box::new(move |l| {
                attention::forward(l, qkv, &attention::Extra { rng, sinks: None }, x, buffer(ROWS), &attrs, columns)
            }));
            all.push(Box::new(move |l| {
                attention::backward(
                    l,
                    x,
                    qkv,
                    x,
                    buffer(ROWS),
                    &attention::Extra { rng, sinks: None },
                    qkv,
                    &attrs,
                    columns,
                )
            }));
        }
        for weights in [None, Some(buffer(ROWS))] {
            all.push(Box::new(move |l| routing::combine(l, x, buffer(ROWS), weights, x, None, columns)));
        }
    }
    all
}

fn product(l: &Launcher, x: Arg, square: Arg, columns: usize, after: Option<fused::After<'_>>) {
    for (transpose_b, precision) in [(false, Precision::F32), (true, Precision::F32), (true, Precision::Bf16)] {
        let layout = Layout { transpose_a: false, transpose_b, fetched: false, precision, panels: None };
        let (fetch, bias, offsets, sums, k) = (None, None, None, None, columns);
        let (m, n) = (ROWS, columns);
        let product = Product {
            layout,
            a: x,
            b: square,
            scale: None,
            fetch,
            bias,
            offsets,
            y: x,
            sums,
            after,
            m,
            n,
            k,
            experts: 1,
        };
        matmul::launch(l, &product);
    }
}

#[test]
fn a_name_covers_everything_that_is_compiled_into_a_kernel() {
    let (profile, launches) = (DeviceProfile::cpu(2), launches());
    let ids = recorded_kernels(profile, SCRATCH_ELEMENTS, &launches).unwrap();
    let launcher = Launcher::listing(profile);
    let (mut kernels, mut texts) = (HashMap::new(), HashMap::new());
    for (launch, ids) in launches.iter().zip(ids) {
        launch(&launcher);
        let names = launcher.take_names();
        assert_eq!(names.len(), ids.len());
        for (name, id) in names.into_iter().zip(ids) {
            let first = kernels.entry(name.clone()).or_insert_with(|| id.clone());
            assert_eq!(*first, id, "two kernels have the name `{name}`");
            // The text that a cache of compiled kernels knows them by.
            let text = id.stable_format();
            let first = texts.entry(text.clone()).or_insert_with(|| id.clone());
            assert_eq!(*first, id, "two kernels have the text `{text}`");
        }
    }
    assert!(kernels.len() > 100, "only {} names", kernels.len());
}

/// A product of two small matrices, of which the second is stored transposed.
fn small_product(precision: Precision) -> Launches {
    Box::new(move |l: &Launcher| {
        let layout = Layout { transpose_a: false, transpose_b: true, fetched: false, precision, panels: None };
        let (fetch, bias, offsets, sums, after) = (None, None, None, None, None);
        let (x, m, n, k) = (buffer(64 * 64), 64, 64, 64);
        let experts = 1;
        matmul::launch(
            l,
            &Product { layout, a: x, b: x, scale: None, fetch, bias, offsets, y: x, sums, after, m, n, k, experts },
        );
    })
}

/// Products, which are most of what LLVM is given, are told from other kernels by a name that CubeCL makes.
#[test]
fn only_products_in_tiles_are_compiled_as_they_are_written() {
    let permutation: Launches = Box::new(|l| copy::permute(l, buffer(64), buffer(64), &[8, 8], &[1, 0]));
    let steps = [small_product(Precision::F32), small_product(Precision::Bf16), permutation];
    let kernels = recorded_kernels(DeviceProfile::cpu(2), SCRATCH_ELEMENTS, &steps).unwrap();
    let written: Vec<bool> = kernels.iter().flatten().map(is_compiled_as_written).collect();
    assert_eq!(written, [true, true, false]);
}

/// Whether an object has the instruction `vdpbf16ps`: a prefix of four bytes that says where its opcode, 52, belongs ("Intel
/// 64 and IA-32 Architectures Software Developer's Manual", volume 2, section 2.7.1 and VDPBF16PS).
#[cfg(target_arch = "x86_64")]
fn multiplies_pairs(object: &[u8]) -> bool {
    object.windows(5).any(|b| b[0] == 0x62 && b[1] & 0x0f == 0x02 && b[2] & 0x87 == 0x06 && b[4] == 0x52)
}

/// Processors with AVX512-BF16 are given the instruction, in registers of every width, and others are not, whether this one
/// has it or not.
#[cfg(target_arch = "x86_64")]
#[test]
fn products_of_bfloat16_numbers_use_the_instruction_for_them() {
    let objects = |lanes, bf16, precision| {
        let profile = DeviceProfile::cpu(2).with_lanes(lanes).with_bf16(bf16);
        objects_for("sapphirerapids", profile, SCRATCH_ELEMENTS, small_product(precision)).unwrap()
    };
    for lanes in [4, 8, 16] {
        assert!(
            objects(lanes, Bf16Products::Instruction, Precision::Bf16).iter().all(|object| multiplies_pairs(object)),
            "{lanes} lanes"
        );
    }
    for (products, precision) in [
        (Bf16Products::Pairs, Precision::Bf16),
        (Bf16Products::Rounded, Precision::Bf16),
        (Bf16Products::Instruction, Precision::F32),
    ] {
        assert!(!objects(16, products, precision).iter().any(|object| multiplies_pairs(object)), "{products:?}");
    }
}

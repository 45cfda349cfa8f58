;; A SmartModule for tests, by hand. With EXPORT "filter" and CHANGES 0 it keeps the records whose value begins with 'a';
;; with "map" and 1 it keeps all, and writes '!' over the first byte of each value.
(module
  (import "env" "copy_records" (func $give (param i32 i32)))
  (memory (export "memory") 512)
  (global $at (mut i32) (i32.const 0))

  (func (export "alloc") (param i32) (result i32) i32.const 1024)

  (func $byte (result i32)
    (global.set $at (i32.add (global.get $at) (i32.const 1)))
    (i32.load8_u (i32.sub (global.get $at) (i32.const 1))))

  (func $varint (result i32) (local $n i32) (local $shift i32) (local $b i32)
    (loop $more
      (local.set $b (call $byte))
      (local.set $n (i32.or (local.get $n)
        (i32.shl (i32.and (local.get $b) (i32.const 127)) (local.get $shift))))
      (local.set $shift (i32.add (local.get $shift) (i32.const 7)))
      (br_if $more (i32.and (local.get $b) (i32.const 128))))
    (i32.shr_u (local.get $n) (i32.const 1)))

  ;; where the value of the record begins whose attributes are next
  (func $value (result i32)
    (drop (call $byte)) (drop (call $varint)) (drop (call $varint))
    (if (call $byte) (then (global.set $at (i32.add (call $varint) (global.get $at)))))
    (drop (call $varint))
    (global.get $at))

  ;; input: i64 base offset, u32 length, then u32 count and the records; output: u32 count, records, no error
  (func (export "EXPORT") (param $in i32) (param $len i32) (param $version i32) (result i32)
    (local $left i32) (local $kept i32) (local $out i32) (local $from i32) (local $end i32) (local $first i32)
    (global.set $at (i32.add (local.get $in) (i32.const 15)))
    (local.set $left (i32.or (call $byte) (i32.shl (i32.load8_u (i32.add (local.get $in) (i32.const 14))) (i32.const 8))))
    (local.set $out (i32.const 16777220))
    (block $done (loop $next
      (br_if $done (i32.eqz (local.get $left)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (local.set $from (global.get $at))
      (local.set $end (i32.add (call $varint) (global.get $at)))
      (local.set $first (call $value))
      (global.set $at (local.get $end))
      (if (i32.or (i32.const CHANGES) (i32.eq (i32.load8_u (local.get $first)) (i32.const 97))) (then
        (if (i32.const CHANGES) (then (i32.store8 (local.get $first) (i32.const 33))))
        (local.set $kept (i32.add (local.get $kept) (i32.const 1)))
        (memory.copy (local.get $out) (local.get $from) (i32.sub (local.get $end) (local.get $from)))
        (local.set $out (i32.add (local.get $out) (i32.sub (local.get $end) (local.get $from))))))
      (br $next)))
    (i32.store8 (i32.const 16777216) (i32.const 0))
    (i32.store8 (i32.const 16777217) (i32.const 0))
    (i32.store8 (i32.const 16777218) (i32.shr_u (local.get $kept) (i32.const 8)))
    (i32.store8 (i32.const 16777219) (local.get $kept))
    (i32.store8 (local.get $out) (i32.const 0))
    (call $give (i32.const 16777216) (i32.sub (local.get $out) (i32.const 16777215)))
    (local.get $kept)))

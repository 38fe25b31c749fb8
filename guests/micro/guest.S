# A guest for lifecycle tests: up in milliseconds, and nearly idle afterwards.
#
# It runs in 32-bit protected mode without paging, on QEMU's q35 and microvm. Everything it does happens
# in one loop, which an interrupt wakes: the timer four times a second, COM1 when a byte arrives, the
# machine when its power button is pressed.
#
#           +--------------------------------------------------+
#           v                                                  |
#   boot -> asleep (hlt) -> woken -> tick due? -> byte? -> button?
#                                                  |         |
#                              r reset  q power off          power off, unless deaf
#                              p panic  d deaf
#
# README.md in this directory has what it prints and accepts.

# --- Constants, with where they come from ---------------------------------------------------------

.set COM1,            0x3f8         # 16550: data; +1 IER, +2 FCR, +4 MCR, +5 LSR
.set PVPANIC,         0x505         # QEMU docs/specs/pvpanic.rst: the ISA device's port
.set RESET_CONTROL,   0xcf9         # ICH9 reset control
.set PCI_ADDRESS,     0xcf8
.set PCI_DATA,        0xcfc
.set LAPIC,           0xfee00000    # Intel SDM volume 3, chapter 11
.set IOAPIC,          0xfec00000
.set GED,             0xfea00000    # QEMU include/hw/i386/microvm.h: GED_MMIO_BASE, event selector
.set GED_SLEEP,       GED + 0x200   # QEMU include/hw/acpi/generic_event_device.h: sleep control
.set GED_RESET,       GED + 0x202   # the same: reset

.set PWRBTN,          1 << 8        # ACPI 6.5, 4.8.3.1: PM1 status and enable
.set SLP_EN,          1 << 13       # ACPI 6.5, 4.8.3.2: PM1 control; QEMU's type for S5 is 0
.set GED_POWER_DOWN,  1 << 1        # ACPI_GED_PWR_DOWN_EVT
.set GED_S5,          0x34          # type 5 << 2, enable 1 << 5
.set GED_RESET_VALUE, 0x42

.set TICKS_PER_SECOND, 4
.set TIMER_HZ,        1000000000 / 128   # QEMU's APIC timer counts nanoseconds; divided by 128

.set VECTOR_TIMER,    0x20
.set VECTOR_WAKE,     0x21          # COM1 and the power button
.set VECTOR_SPURIOUS, 0xff
.set IRQ_COM1,        4
.set IRQ_ACPI,        9             # q35: SCI, level; microvm: GED, edge
.set LEVEL,           1 << 15       # I/O APIC redirection entry

.set CODE, 8                        # selectors in `gdt`
.set DATA, 16

# --- Entry ----------------------------------------------------------------------------------------

    .section .note.Xen, "a", @note
    .long 4, 8, 18                  # name size, description size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad entry

    .text
    .code32
    .globl entry
entry:
    cli
    lgdt gdt_pointer
    ljmp $CODE, $1f
1:  mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $stack_top, %esp
    cld

    mov $VECTOR_TIMER, %ecx
    mov $on_timer, %eax
    call set_gate
    mov $VECTOR_WAKE, %ecx
    mov $on_wake, %eax
    call set_gate
    mov $VECTOR_SPURIOUS, %ecx
    mov $on_spurious, %eax
    call set_gate
    lidt idt_pointer

    call find_acpi
    call start_uart
    call start_interrupts
    mov $text_boot, %esi
    call print

# --- The loop -------------------------------------------------------------------------------------

asleep:
    sti                             # takes effect after the next instruction: no wake-up is lost
    hlt
    # Not reached: every interrupt ends in `woken`.
woken:
    mov $stack_top, %esp            # drops the interrupt's frame; interrupts are off again

    cmpb $0, tick_due
    je 1f
    movb $0, tick_due
    incl ticks
    mov $text_tick, %esi
    call print
    mov ticks, %eax
    call print_decimal
    mov $text_newline, %esi
    call print
1:
    mov $COM1 + 5, %edx             # a byte? (0xff: there is no UART)
    inb %dx, %al
    cmp $0xff, %al
    je 2f
    test $1, %al
    jz 2f
    mov $COM1, %edx
    inb %dx, %al
    call command
    jmp 1b                          # until the UART is empty, else it raises no new edge
2:
    call button_pressed
    jz asleep
    cmpb $0, deaf
    jne 3f
    mov $text_button, %esi
    call print
    call power_off
    jmp asleep
3:  mov $text_ignored, %esi
    call print
    jmp asleep

# command: what the byte in %al asks for. Other bytes are ignored.
command:
    cmp $'r', %al
    je reset
    cmp $'q', %al
    je power_off
    cmp $'p', %al
    je panic
    cmp $'d', %al
    je toggle_deaf
    ret

toggle_deaf:
    mov $text_hears, %esi
    xorb $1, deaf
    jz print
    mov $text_deaf, %esi
    jmp print

# --- What a machine can do ------------------------------------------------------------------------

# find_acpi: on q35, sets pm_base to the ACPI registers that the firmware has placed and enables the
# power button there; leaves it 0 on a machine without PCI, which is microvm and has a GED.
find_acpi:
    mov $0x8000f800, %eax           # bus 0, device 31 (LPC bridge), function 0, register 0: its ID
    call pci_read
    cmp $0x29188086, %eax           # ICH9
    jne 1f
    mov $0x8000f840, %eax           # PMBASE
    call pci_read
    and $0xff80, %eax
    mov %eax, pm_base
    mov %eax, %edx
    mov $PWRBTN, %eax
    outw %ax, %dx                   # status: cleared by writing 1
    add $2, %edx
    outw %ax, %dx                   # enable: QEMU only reports an enabled event
1:  ret

# button_pressed: clears ZF if the power button was pressed since the last call.
button_pressed:
    mov pm_base, %edx
    test %edx, %edx
    jz 1f
    inw %dx, %ax
    test $PWRBTN, %eax
    jz 2f
    mov $PWRBTN, %eax
    outw %ax, %dx
    or $1, %al                      # clears ZF
    ret
1:  movl GED, %eax                  # reading clears it
    test $GED_POWER_DOWN, %eax
2:  ret

# power_off: the machine takes a moment to act on it, so this returns, and the loop goes on where there
# is no way to do it (microvm without ACPI).
power_off:
    mov pm_base, %edx
    test %edx, %edx
    jz 1f
    add $4, %edx
    mov $SLP_EN, %eax
    outw %ax, %dx
    ret
1:  movb $GED_S5, GED_SLEEP
    ret

# reset: by the machine's reset register, else by a triple fault, which every x86 machine obeys.
reset:
    cmpl $0, pm_base
    je 1f
    mov $RESET_CONTROL, %edx
    mov $6, %al
    outb %al, %dx
    jmp 2f
1:  movb $GED_RESET_VALUE, GED_RESET
2:  lidt no_idt_pointer
    int3

# panic: tells QEMU by pvpanic and stops for good, as an operating system does; without the device it
# says so and goes on.
panic:
    mov $PVPANIC, %edx
    inb %dx, %al                    # the events that the device knows; 0xff: there is none
    cmp $0xff, %al
    je 2f
    mov $text_panic, %esi
    call print
    mov $PVPANIC, %edx
    mov $1, %al                     # PVPANIC_PANICKED
    outb %al, %dx
1:  cli
    hlt
    jmp 1b
2:  mov $text_no_pvpanic, %esi
    jmp print

# --- Interrupts -----------------------------------------------------------------------------------

# start_interrupts: the local APIC's timer, and COM1 and ACPI through the I/O APIC.
start_interrupts:
    mov $0xff, %al                  # mask both PICs, where there are any
    outb %al, $0x21
    outb %al, $0xa1

    movl $0x100 | VECTOR_SPURIOUS, LAPIC + 0xf0
    movl $0xa, LAPIC + 0x3e0        # divide by 128
    movl $0x20000 | VECTOR_TIMER, LAPIC + 0x320     # periodic
    movl $TIMER_HZ / TICKS_PER_SECOND, LAPIC + 0x380

    mov $IRQ_COM1, %ecx
    mov $VECTOR_WAKE, %eax
    call route_irq
    mov $IRQ_ACPI, %ecx
    mov $VECTOR_WAKE, %eax
    cmpl $0, pm_base
    je 1f
    or $LEVEL, %eax
1:  jmp route_irq

# route_irq: I/O APIC pin %ecx to the redirection entry %eax, on the CPU with APIC ID 0.
route_irq:
    lea 0x11(,%ecx,2), %edx
    movl %edx, IOAPIC
    movl $0, IOAPIC + 0x10
    dec %edx
    movl %edx, IOAPIC
    movl %eax, IOAPIC + 0x10
    ret

# set_gate: interrupt vector %ecx is handled at %eax.
set_gate:
    movw %ax, idt(,%ecx,8)
    movw $CODE, idt + 2(,%ecx,8)
    movw $0x8e00, idt + 4(,%ecx,8)  # present 32-bit interrupt gate: it turns interrupts off
    shr $16, %eax
    movw %ax, idt + 6(,%ecx,8)
    ret

# The handlers do not return to where they interrupted, which is always the `hlt`: a level-triggered
# interrupt whose cause is not dealt with yet would come again at once.
on_timer:
    movb $1, tick_due
on_wake:
    movl $0, LAPIC + 0xb0           # end of interrupt
on_spurious:                        # needs none
    jmp woken

# --- Input and output -----------------------------------------------------------------------------

start_uart:
    mov $COM1 + 1, %edx
    mov $1, %al                     # interrupt when a byte has arrived
    outb %al, %dx
    mov $COM1 + 4, %edx
    mov $0x0b, %al                  # DTR, RTS, and OUT2, which gates the interrupt
    outb %al, %dx
    ret

# print: the text at %esi up to its NUL.
print:
    lodsb
    test %al, %al
    jz 1f
    call print_byte
    jmp print
1:  ret

# print_byte: %al. Waits for the UART, but not for ever: nobody may be reading.
print_byte:
    push %eax
    mov $100000, %ecx
    mov $COM1 + 5, %edx
1:  inb %dx, %al
    test $0x20, %al                 # transmitter empty
    loopz 1b
    pop %eax
    mov $COM1, %edx
    outb %al, %dx
    ret

# print_decimal: %eax.
print_decimal:
    mov $digits_end, %esi
    mov $10, %ecx
1:  xor %edx, %edx
    div %ecx
    add $'0', %dl
    dec %esi
    movb %dl, (%esi)
    test %eax, %eax
    jnz 1b
    jmp print

# pci_read: the configuration register with the address %eax, into %eax.
pci_read:
    mov $PCI_ADDRESS, %edx
    outl %eax, %dx
    mov $PCI_DATA, %edx
    inl %dx, %eax
    ret

# --- Data -----------------------------------------------------------------------------------------

    .data
text_boot:       .asciz "boot\r\n"
text_tick:       .asciz "tick "
text_newline:    .asciz "\r\n"
text_button:     .asciz "power button\r\n"
text_ignored:    .asciz "power button ignored\r\n"
text_deaf:       .asciz "deaf\r\n"
text_hears:      .asciz "hears\r\n"
text_panic:      .asciz "panic\r\n"
text_no_pvpanic: .asciz "no pvpanic\r\n"

digits:          .space 10
digits_end:      .byte 0

tick_due:        .byte 0
deaf:            .byte 0
    .balign 4
ticks:           .long 0
pm_base:         .long 0

    .balign 8
gdt:             .quad 0
                 .quad 0x00cf9b000000ffff    # code: flat, 32 bits
                 .quad 0x00cf93000000ffff    # data: flat
gdt_pointer:     .word . - gdt - 1
                 .long gdt
idt_pointer:     .word 256 * 8 - 1
                 .long idt
no_idt_pointer:  .word 0
                 .long 0

    .bss
    .balign 8
idt:             .space 256 * 8
                 .space 4096
stack_top:

    .section .note.GNU-stack, "", @progbits

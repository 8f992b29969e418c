package Service;

# What tests of the running service share: where the program is, a client that speaks lines with a time limit, and
# looking at processes. Only processes given to `kill_later` are ever killed.

use v5.30;
use warnings;
use Exporter 'import';
use File::Temp ();
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(program tempdir client_unix client_tcp greeting ask ended until_true kill_later alive
    children sessions free_port spit);

my %mine;
my @dirs;

# The built program, or undef.
sub program {
    return $ENV{CYR_BACKUP} if $ENV{CYR_BACKUP};
    my @built = sort { -M $a <=> -M $b } grep { -x } map {"target/$_/cyr_backup"} qw(debug release);
    return $built[0];
}

# A directory that goes with the test; on a RAM disk where there is one, because socket paths must be short.
sub tempdir {
    my $base = -w '/dev/shm' ? '/dev/shm' : '/tmp';
    my $dir = File::Temp->newdir('cyrb-XXXXXX', DIR => $base);
    push @dirs, $dir;
    return "$dir";
}

sub spit {
    my ($path, $text) = @_;
    open my $fh, '>', $path or die "$path: $!";
    print $fh $text;
    close $fh or die "$path: $!";
}

sub client_unix { IO::Socket::UNIX->new(Peer => $_[0], Type => SOCK_STREAM) }
sub client_tcp { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $_[0], Proto => 'tcp') }

# One line without its CRLF; undef at the end of the stream or of the time.
sub line {
    my ($c, $secs) = @_;
    my $end = time + ($secs // 10);
    my $line = '';
    while ($line !~ /\n\z/) {
        my $left = $end - time;
        return undef if $left <= 0 || !IO::Select->new($c)->can_read($left);
        return undef unless sysread $c, $line, 1, length $line;
    }
    return $line =~ s/\r?\n\z//r;
}

# Reads up to the banner's last line and returns it.
sub greeting {
    my ($c, $secs) = @_;
    return undef unless $c;
    while (defined(my $l = line($c, $secs))) {
        return $l if $l =~ /^\* (OK|BYE)/;
    }
    return undef;
}

# Sends one command and returns the first line of the answer that is not untagged data.
sub ask {
    my ($c, $command) = @_;
    local $SIG{PIPE} = 'IGNORE';
    syswrite $c, "$command\r\n" or return undef;
    while (defined(my $l = line($c))) {
        return $l unless $l =~ /^\*/;
    }
    return undef;
}

# Whether the server has closed the connection, or does within the time.
sub ended {
    my ($c, $secs) = @_;
    return 0 unless IO::Select->new($c)->can_read($secs);
    my $got = sysread $c, my $byte, 1;
    return !$got;
}

# Waits for a condition; returns its last value.
sub until_true {
    my ($test, $secs) = @_;
    my $end = time + ($secs // 10);
    my $is;
    sleep 0.02 until $is = $test->() or time > $end;
    return $is;
}

sub kill_later { $mine{$_} = started($_) for @_; return $_[0] }

# Start time of a process, so that a number used again is not taken for ours; undef if it is gone.
sub started {
    my ($stat) = stats($_[0]) or return undef;
    return $stat->[19];
}

# Fields 3 and up of /proc/PID/stat; nothing for a zombie.
sub stats {
    open my $fh, '<', "/proc/$_[0]/stat" or return;
    my $text = <$fh> // return;
    my @f = split ' ', $text =~ s/.*\) //r;
    return $f[0] eq 'Z' ? () : \@f;
}

sub alive { defined started($_[0]) }

# Living children of a process, or how many.
sub children {
    my ($parent) = @_;
    my @found;
    for my $pid (map { m{(\d+)\z} } glob '/proc/[0-9]*') {
        my ($f) = stats($pid) or next;
        push @found, $pid if $f->[1] == $parent;
    }
    kill_later(@found) if $mine{$parent};
    @found = sort { $a <=> $b } @found;
    return @found;
}

# How many clients a process serves: its threads named sess-N.
sub sessions {
    my $n = 0;
    for my $file (glob "/proc/$_[0]/task/*/comm") {
        open my $fh, '<', $file or next;
        $n++ if (<$fh> // '') =~ /^sess-/;
    }
    return $n;
}

# A loopback port that nobody uses just now.
sub free_port {
    my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1, Proto => 'tcp') or die $!;
    return $s->sockport;
}

END {
    my $status = $?;
    for my $pid (keys %mine) {
        my $now = started($pid);
        kill KILL => $pid if defined $now && defined $mine{$pid} && $now == $mine{$pid};
    }
    1 while waitpid(-1, 1) > 0;
    $? = $status;
}

1;
